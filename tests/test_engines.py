"""The contract of every engine: sequences side by side say what each of them says alone."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from conftest import spec_of, unequal_spec
from helpers import ToyEngine, filled_decoder, with_layers

from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.compact import select
from sentinel.errors import InputError
from sentinel.infer.engine import Ability, Engine
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import ENGINES, levels_on, make_engine
from sentinel.infer.torch.static import StaticTorchEngine
from sentinel.models.spec import RopeSpec
from sentinel.models.width import Width

RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, 97, n).tolist() for n in (40, 33, 37, 47, 41)]
LONG = RopeSpec(
    1e4, "longrope", original_max_seq_len=16, short_factors=(1.0, 1.1, 1.3, 2.0), long_factors=(2.0, 3.0, 4.0, 8.0)
)
MODELS = {
    "gpt2": filled_decoder(spec_of("gpt2")),
    "grouped": filled_decoder(spec_of("llama-grouped")),
    "unequal": filled_decoder(unequal_spec()),
    "integrated": integrate(filled_decoder(spec_of("llama-grouped")), rank=2),
    "windowed": filled_decoder(with_layers(spec_of("llama-grouped"), window=7)),
    "long": filled_decoder(with_layers(spec_of("llama-grouped"), rope=LONG)),
}
KINDS = [(0, None), (1, None), (2, None), (3, "int8"), (3, "int4"), ("static", None)]


def engine_of(kind, model="grouped") -> Engine:
    level, precision = kind
    decoder = MODELS[model]
    return StaticTorchEngine(decoder) if level == "static" else make_engine(decoder, level, precision=precision)


class Spoken:
    """Feeds `TEXTS` to sequences of one engine; ``calls`` and ``found`` note by text what was called, and all logits."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.sequences = engine, {}
        self.calls: dict[int, list[tuple[str, int]]] = {i: [] for i in range(len(TEXTS))}
        self.found: dict[int, list[np.ndarray]] = {i: [] for i in range(len(TEXTS))}

    def open(self, prompts: dict[int, int], room: int) -> None:
        """Prompts of so many tokens, by the number of their text."""
        sequences, logits = self.engine.open_all([TEXTS[i][:n] for i, n in prompts.items()], room)
        self.sequences.update(zip(prompts, sequences, strict=True))
        for (i, n), row in zip(prompts.items(), logits, strict=True):
            self.note(i, "open", n, row)

    def step(self, *texts: int) -> None:
        chosen = [self.sequences[i] for i in texts]
        tokens = [TEXTS[i][self.sequences[i].length] for i in texts]
        for i, row in zip(texts, self.engine.step(chosen, tokens), strict=True):
            self.note(i, "step", 1, row)

    def read(self, text: int, n: int, how: str) -> None:
        """The next ``n`` tokens at once: "verify" or "extend"."""
        start = self.sequences[text].length
        self.note(text, how, n, getattr(self.engine, how)(self.sequences[text], TEXTS[text][start : start + n]))

    def roll_back(self, text: int, n: int) -> None:
        self.engine.roll_back(self.sequences[text], n)
        self.note(text, "roll back", n)

    def close(self, text: int) -> None:
        self.engine.close(self.sequences.pop(text))

    def note(self, text: int, call: str, n: int, *logits) -> None:
        self.calls[text].append((call, n))
        self.found[text] += logits

    def alone(self, text: int, engine: Engine) -> list[np.ndarray]:
        """What ``engine`` says after the same calls of one text, with nothing beside it."""
        again = Spoken(engine)
        for call, n in self.calls[text]:
            if call == "open":
                again.open({text: n}, len(TEXTS[text]) - n)
            elif call == "step":
                again.step(text)
            elif call == "roll back":
                again.roll_back(text, n)
            else:
                again.read(text, n, call)
        return again.found[text]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sequences_side_by_side_say_what_each_says_alone(kind, model):
    engine = engine_of(kind, model)
    spoken = Spoken(engine)
    spoken.open({0: 9}, 20)
    spoken.step(0)
    spoken.open({1: 3, 2: 17}, 20)  # while another one goes on: more slots
    for texts in ((0, 1, 2), (2, 0), (1,), (2, 1, 0)):
        spoken.step(*texts)
    spoken.read(1, 5, "verify")
    spoken.roll_back(1, 3)
    spoken.step(0, 1)
    spoken.close(0)
    spoken.step(2, 1)
    spoken.open({3: 30, 4: 2}, 17)  # in the slot that is free and in a new one: longer slots
    spoken.read(2, 4, "extend")
    for texts in ((4, 2), (1, 2, 3, 4), (3, 1)):
        spoken.step(*texts)
    check_alone(spoken, kind, model)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_fork_goes_its_own_way(kind):
    engine = engine_of(kind)
    first, _ = engine.open(TEXTS[0][:12], 20)
    texts = [TEXTS[0], *([*TEXTS[0][:12], *TEXTS[i][12:]] for i in (1, 2))]
    others = [engine.fork(first), engine.fork(first, room=8)]
    assert [one.length for one in others] == [12, 12] and [one.limit for one in others] == [32, 20]
    steps = [engine.step([first, *others], [text[n] for text in texts]) for n in range(12, 16)]
    rest = engine.extend(others[0], texts[1][16:20])
    one = engine_of(kind)
    for row, text in enumerate(texts):
        one.prefill([text[:12]], 20)
        for n, step in enumerate(steps):
            check_same(one.decode_one_token([text[12 + n]])[0], step[row], kind)
        if row == 1:
            check_same(one.extend(one.batch[0], text[16:20]), rest, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_slot_is_used_again_and_leaves_no_trace(kind):
    engine = engine_of(kind)
    (first, second), _ = engine.open_all([TEXTS[0][:20], TEXTS[1][:20]], 4)
    engine.close(first)
    third, logits = engine.open(TEXTS[2][:5], 4)
    assert third.slot == first.slot and engine.is_open(third) and not engine.is_open(first)
    engine.step([second], [1])
    engine.close(first)  # has ended already, and another one is in its slot
    step = engine.step([third], [7])
    one = engine_of(kind)
    check_same(one.prefill([TEXTS[2][:5]], 4)[0], logits, kind)
    check_same(one.decode_one_token([7]), step, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_text_is_scored_beside_open_sequences(kind):
    engine = engine_of(kind)
    sequence, _ = engine.open(TEXTS[0][:9], 8)
    whole = engine.score(TEXTS[1])
    check_same(engine.score(TEXTS[1], last=3), whole[-3:], kind, 1e-3 if kind[0] == 3 else 1e-5)
    fresh = engine_of(kind)
    check_same(fresh.score(TEXTS[1]), whole, kind)
    fresh.prefill([TEXTS[0][:9]], 8)
    check_same(engine.step([sequence], [3]), fresh.decode_one_token([3]), kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_width_is_that_of_a_smaller_model(kind):
    width = Width((1, 2, 1), (40, 80, 13))
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine = StaticTorchEngine(decoder) if kind[0] == "static" else make_engine(decoder, kind[0], precision=kind[1])
    whole, bytes_of_whole = engine.prefill([TEXTS[0]], 2), engine.step_bytes(2, 10)
    engine.set_width(width)
    assert engine.spec_in_use == width.of(engine.spec)
    assert engine.weight_bytes_per_token() < engine.step_bytes(2, 10) < bytes_of_whole
    with pytest.raises(InputError, match="no batch to go on with"):  # it is of another width
        engine.decode_one_token([1])
    narrow = engine.prefill([TEXTS[0]], 2)
    expected = at_counts(decoder, width).prefill([TEXTS[0]], 2)
    tolerance = {"int8": 0.05, "int4": 0.5}.get(engine.precision, 1e-4)
    assert np.abs(narrow - expected).max() < tolerance * np.abs(expected).max()
    engine.set_width(Width.full(decoder.spec))
    np.testing.assert_array_equal(engine.prefill([TEXTS[0]], 2), whole)


def at_counts(decoder, width) -> Engine:
    smaller = select(decoder, width.kept)
    return make_engine(smaller, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_grows_beyond_a_turn_of_its_angles_is_the_same_at_every_level(kind):
    """With longrope a prompt has the angles of its own length, and every further token those of the length with it."""
    quantised = kind[0] == 3  # as level 2, which is compared with level 1, to the bit: alone or beside others
    engine, level_1 = engine_of(kind, "long"), engine_of(kind if quantised else (1, None), "long")
    tolerance = 0.0 if quantised else 1e-4

    def close(found, expected) -> None:
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()

    text, other = TEXTS[0], TEXTS[1]
    (ours, ours_long), _ = engine.open_all([text[:5], other[:20]], 20)  # before the turn at 16, and beyond it
    theirs, _ = level_1.open(text[:5], 35)
    theirs_long, _ = level_1.open(other[:20], 20)
    for n in range(5, 20):
        pair = engine.step([ours, ours_long], [text[n], other[n + 15]]) if n < 18 else None
        found = pair[0] if pair is not None else engine.step([ours], [text[n]])[0]
        close(found, level_1.step([theirs], [text[n]])[0])
        if pair is not None:
            close(pair[1], level_1.step([theirs_long], [other[n + 15]])[0])
    engine.close(ours, ours_long)
    if Ability.VERIFY in engine.supports:
        sequence, _ = engine.open(text[:10], 20)
        several = engine.verify(sequence, text[10:22])
        engine.roll_back(sequence, 12)
        alone = np.concatenate([engine.step([sequence], [token]) for token in text[10:22]])
        np.testing.assert_allclose(several, alone, atol=1e-5 * np.abs(alone).max())
        engine.roll_back(sequence, 12)
        close(engine.extend(sequence, text[10:22]), several[-1])


def check_alone(spoken: Spoken, kind, model) -> None:
    for text, found in spoken.found.items():
        for logits, expected in zip(found, spoken.alone(text, engine_of(kind, model)), strict=True):
            check_same(logits, expected, kind)


def check_same(found, expected, kind, tolerance=None) -> None:
    """Quantised weights to the bit, since whole numbers add up in any order; fp32 within rounding."""
    if tolerance is None:
        tolerance = 0.0 if kind[0] == 3 else 1e-5
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# --- what is written once, for all ----------------------------------------------------------------------------------


def toy(**options) -> ToyEngine:
    return ToyEngine(lambda tokens: (tokens[-1] + 1) % 97, spec_of("gpt2"), **options)


def test_wrong_calls_are_refused_in_one_sentence():
    engine, other = toy(), toy()
    sequence, _ = engine.open([1, 2], 2)
    theirs, _ = other.open([1], 60)
    calls = {
        "there is no prompt": lambda: engine.open_all([], 1),
        "the prompt is empty": lambda: engine.open_all([[1], []], 1),
        "max-new-tokens must be at least 1": lambda: engine.open([1], 0),
        "a prompt of 60 tokens and 5 new ones": lambda: engine.open([1] * 60, 5),
        "token ids must be between 0 and 96": lambda: engine.open([97], 1),
        "token ids must be .* and 96": lambda: engine.step([sequence], [-1]),
        "2 tokens were given for 1 sequences": lambda: engine.step([sequence], [1, 2]),
        "0 tokens were given for 0": lambda: engine.step([], []),
        "given twice": lambda: engine.step([sequence, sequence], [1, 1]),
        "not open here": lambda: engine.step([theirs], [1]),
        "not open .* open one with a prompt": lambda: engine.fork(theirs),
        "room for 4 tokens, and 2 of them are used up": lambda: engine.verify(sequence, [1, 2, 3]),
        "there is no token": lambda: engine.extend(sequence, []),
        "has 2 tokens; 2 can't be taken away": lambda: engine.roll_back(sequence, 2),
        "has 2 tokens; -1 can't": lambda: engine.roll_back(sequence, -1),
        "2 tokens and 63 new ones do not fit": lambda: engine.fork(sequence, room=63),
        "1 to 64 tokens can be scored, not one of 0": lambda: engine.score([]),
        "no last 3": lambda: engine.score([1, 2], last=3),
        "no batch to go on with; call prefill first": lambda: engine.decode_one_token([1]),
        "can't be profiled; profile another level": engine.meter,
    }
    for said, call in calls.items():
        with pytest.raises(InputError, match=said) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert sequence.length == 2 and engine.step([sequence], [5]).argmax() == 6  # nothing of it was counted
    engine.close(sequence)
    for call in (lambda: engine.step([sequence], [1]), lambda: engine.roll_back(sequence, 0)):
        with pytest.raises(InputError, match="not open here"):
            call()


def test_what_an_engine_can_not_do_is_said_before_it_is_tried():
    engine = toy(supports=())
    sequence, _ = engine.open([1], 9)
    calls = {
        Ability.VERIFY: lambda: engine.verify(sequence, [2]),
        Ability.SCORE: lambda: engine.score([1]),
        Ability.SWITCH_WIDTH: lambda: engine.set_width(None),
    }
    assert set(calls) == set(Ability)
    for ability, call in calls.items():
        with pytest.raises(InputError, match=f"toy can't {ability.value}; take another level"):
            call()


def test_more_sequences_than_an_engine_holds_are_refused():
    engine = toy()
    engine.max_sequences = 3
    (first, _), _ = engine.open_all([[1], [2]], 5)
    for call in (lambda: engine.open_all([[1], [2]], 5), lambda: (engine.fork(first), engine.fork(first))):
        with pytest.raises(InputError, match="toy takes at most 3 sequences at once, not 4; give fewer"):
            call()


def test_a_prompt_that_fails_leaves_nothing_open():
    def answer(tokens):
        raise KeyboardInterrupt

    engine = ToyEngine(answer, spec_of("gpt2"))
    with pytest.raises(KeyboardInterrupt):
        engine.open([1], 5)
    engine.answer = lambda tokens: 0
    assert engine.open([1], 5)[0].slot == 0


def test_a_prefill_ends_the_batch_before_it_and_nothing_else():
    engine = toy()
    sequence, _ = engine.open([4], 9)
    engine.prefill([[1], [2]], 5)
    slots = [one.slot for one in engine.batch]
    engine.prefill([[3, 4], [5]], 5)
    assert [one.slot for one in engine.batch] == slots == [1, 2]
    assert engine.decode_one_token([8, 9]).argmax(1).tolist() == [9, 10]
    assert engine.step([sequence], [5]).argmax() == 6
    engine.release()
    with pytest.raises(InputError, match="call prefill first"):
        engine.decode_one_token([1, 1])


def test_two_texts_are_generated_by_one_engine_in_turn():
    engine = make_engine(MODELS["grouped"], 1)
    texts = [generate_tokens(engine, [TEXTS[i][:n]], 10) for i, n in ((0, 9), (1, 4))]
    mixed = list(zip(*texts, strict=True))
    for i, n in ((0, 9), (1, 4)):
        assert [step[i] for step in mixed] == list(generate_tokens(engine, [TEXTS[i][:n]], 10))
    assert engine.open([1], 1)[0].slot == 0  # all are closed


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_engine_is_freed_with_its_last_reference(kind):
    """Sequences do not hold on to it, so that its memory is free at once."""
    engine = engine_of(kind)
    engine.prefill([[1, 2, 3]], 4)
    gone = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert gone() is None
    finally:
        gc.enable()


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_level_on_the_cpu_and_what_accelerators_run():
    assert levels_on("cpu") == (0, 1, 2, 3)
    assert levels_on("cuda:1") == levels_on("mps") == (0, 1, 2)
    assert {level: {p for n, _, p in ENGINES if n == level} for level in range(4)} == {
        0: {"fp32"}, 1: {"fp32"}, 2: {"fp32"}, 3: {"int8", "int4"}
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS[:-1], ids=str)
def test_an_engine_says_what_it_is(kind):
    level, precision = kind
    engine = engine_of(kind)
    assert (engine.level, engine.precision, engine.device) == (level, precision or "fp32", "cpu")
    assert engine.supports == set(Ability)
    assert (engine.decoder is None) == (engine.packed is not None) == (level >= 2)
    before = engine.memory()
    engine.prefill([TEXTS[0]], 8)
    held = engine.memory()
    assert held.weights == before.weights > 0 and before.kv == 0 < held.kv
    assert held.work is None if level < 2 else held.work > 0
    assert engine.step_bytes(3, 10) == engine.weight_bytes_per_token() + 30 * engine.spec.kv_bytes_per_position(
        engine.kv_bytes
    )
    engine.release()
    assert engine.memory() == before
