"""Pruning: surgery, orders and plans, compensation, elastic levels."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, some_order, some_tokens

from sentinel.adapt.pruning.compact import compact, expand_kv, in_nested_order, select
from sentinel.adapt.pruning.compensate import Normal, best_solution, compensate, solve
from sentinel.adapt.pruning.plan import PruningPlan
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.pruning.residual_stream import HALVES, Stream
from sentinel.adapt.pruning.room import BATCH
from sentinel.adapt.text.corpora import Document, Text, Windows, load_texts, refuse_shared_documents, sample_windows
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.models.kv_cache import KVCache
from sentinel.models.record import Record
from sentinel.models.reference import ReferenceDecoder

SPECS = ["gpt2", "gpt2-relu-untied", "llama-grouped", "llama-multi-query-biases", "unequal-rope", "unequal-learned"]


def make(name: str):
    return unequal_spec(name.removeprefix("unequal-")) if name.startswith("unequal") else spec_of(name)


def windows_of(spec, count=12, length=24, seed=3):
    return some_tokens(spec, batch=count, length=length, seed=seed)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0])
def test_masked_equals_compacted(name, ratio):
    """Zeroing what a plan drops, head by head in the reference, equals removing it, empty layers included."""
    decoder = filled_decoder(make(name))
    plan = some_order(decoder.spec).plan(ratio, ratio)
    reference = ReferenceDecoder(decoder)
    for block, groups, neurons in zip(reference.blocks, plan.kept.groups, plan.kept.neurons, strict=True):
        block.attn.mask.zero_()
        block.attn.mask.view(-1, max(1, block.attn.layer.group_size))[list(groups)] = 1
        block.mlp.mask.zero_()
        block.mlp.mask[list(neurons)] = 1
    tokens = some_tokens(decoder.spec)
    smaller = compact(decoder, plan)
    with torch.no_grad():
        assert largest_difference(smaller(tokens), reference(tokens)) < 1e-5
    total = sum(layer.n_kv_head for layer in decoder.spec.layers)
    assert sum(layer.n_kv_head for layer in smaller.spec.layers) == total - round(ratio * total)
    counted = sum(p.numel() for p in smaller.parameters())
    assert counted == smaller.spec.parameter_count(gates=True) < decoder.spec.parameter_count(gates=True)


@pytest.mark.parametrize("name", SPECS)
def test_expanding_keys_and_ordering_change_nothing(name):
    decoder = filled_decoder(make(name))
    tokens = some_tokens(decoder.spec)
    wide = expand_kv(decoder)
    assert all(layer.n_kv_head == layer.n_head for layer in wide.spec.layers)
    with torch.no_grad():
        assert largest_difference(wide(tokens), decoder(tokens)) < 1e-5
        assert largest_difference(in_nested_order(wide, some_order(wide.spec))(tokens), decoder(tokens)) < 1e-5


def test_plans_of_one_order_are_nested_and_respect_floors():
    spec = make("unequal-rope")
    order = some_order(spec, floor_groups=1, floor_neurons=2)
    kept = [order.plan(r, r).kept for r in (0.0, 0.2, 0.5, 0.8)]
    for weaker, stronger in itertools.pairwise(kept):
        for a, b in zip((*weaker.groups, *weaker.neurons), (*stronger.groups, *stronger.neurons), strict=True):
            assert b == a[: len(b)]
    most = order.plan(3 / 6, 0.9)
    assert all(kept for kept, layer in zip(most.kept.groups, spec.layers, strict=True) if layer.n_head)
    assert all(len(kept) >= 2 for kept, la in zip(most.kept.neurons, spec.layers, strict=True) if la.intermediate_size)
    uniform = some_order(spec_of("gpt2"), scope="uniform").plan(0.5, 0.25)
    assert uniform.width.groups == (2, 2, 2) and uniform.width.neurons == (144, 144, 144)


def test_plans_go_through_json_and_belong_to_one_model():
    spec = spec_of("gpt2")
    plan = some_order(spec).plan(0.5, 0.25)
    assert PruningPlan.from_json(plan.to_json()) == plan
    with pytest.raises(InputError, match="another shape"):
        compact(filled_decoder(spec_of("llama-grouped")), plan)
    with pytest.raises(InputError, match="not a pruning plan"):
        PruningPlan.from_json('{"groups": 3}')
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            some_order(spec).plan(ratio)


def test_least_squares_equals_a_direct_solution_in_float64():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 20, generator=generator)
    y = torch.randn(300, 7, generator=generator)
    normal = Normal.empty(20, 7)
    for part in range(3):
        normal.add(z[part * 100 : (part + 1) * 100], y[part * 100 : (part + 1) * 100])
    prior = torch.randn(21, 7, generator=generator, dtype=torch.float64)
    scale = normal.gram.diagonal()[:-1].mean().item()
    rows = torch.cat((torch.full((20,), 0.01 * scale), torch.tensor([1e-6 * 300]))).double().sqrt()
    stacked = torch.cat((torch.cat((z, torch.ones(300, 1)), 1).double(), torch.diag(rows)))
    direct = torch.linalg.lstsq(stacked, torch.cat((y.double(), rows[:, None] * prior))).solution
    assert torch.allclose(solve(normal, prior, 0.01), direct, atol=1e-5)
    residual = torch.cat((z, torch.ones(300, 1)), 1).double() @ direct - y
    assert normal.error(direct) == pytest.approx(residual.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 3 * BATCH])
def test_a_stream_takes_every_window_once(count):
    stream = Stream(filled_decoder(spec_of("gpt2")), some_tokens(spec_of("gpt2"), batch=count, length=4))
    batches = [list(range(count))[batch] for batch in stream.batches()]
    assert list(itertools.chain(*batches)) == list(range(count)) and max(map(len, batches)) <= BATCH


def test_the_reference_goes_on_from_its_cache_with_a_layer_without_heads_first():
    spec = unequal_spec()
    spec = dataclasses.replace(spec, layers=(spec.layers[1], *spec.layers[:1]))  # whose lengths the cache tells
    reference, tokens = ReferenceDecoder(filled_decoder(spec)), some_tokens(spec, batch=3, length=8)
    cache = KVCache(reference.cache_spec, 3, 8)
    with torch.no_grad():
        steps = [reference(tokens[:, a:b], cache) for a, b in ((0, 5), (5, 6), (6, 8))]
        assert largest_difference(torch.cat(steps, 1), reference(tokens)) < 1e-5
    assert cache.get_seq_length() == 8


def test_singular_gram_matrices_are_damped():
    normal = Normal.empty(6, 2)
    normal.add(torch.zeros(10, 6), torch.ones(10, 2))
    solution = solve(normal, torch.zeros(7, 2, dtype=torch.float64), 1e-4)
    assert torch.allclose(solution[-1], torch.ones(2, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_compensation_is_never_worse_than_none_on_the_calibration_text(name):
    """Each re-solved projection brings the stream nearer to the dense one than the old weights do."""
    dense = filled_decoder(make(name))
    windows = windows_of(dense.spec)
    plan = some_order(dense.spec).plan(0.5, 0.4)
    (student,) = compensate(dense, [plan.kept], windows)
    plain = select(dense, plan.kept, biases=True)
    teacher, with_, without = Stream(dense, windows), Stream(student, windows), Stream(student, windows)
    for index in range(dense.spec.n_layer):
        for half in HALVES:
            # the same inputs, once through the old projection, once through the new one
            old = getattr(plain.blocks[index], half).projection
            before = without.states.clone()
            teacher.advance(index, half)
            with_.advance(index, half)
            with torch.no_grad():
                for batch in without.batches():
                    inputs = without.inputs(index, half, batch)
                    before[batch] += inputs @ old.weight.T + old.bias
            resolved, kept = ((s - teacher.states).square().sum().item() for s in (with_.states, before))
            assert resolved <= kept * (1 + 1e-4) + 1e-9 * teacher.states.square().sum().item(), (index, half)
            without.states = with_.states.clone()


def test_compensation_of_nothing_changes_nothing():
    dense = filled_decoder(spec_of("llama-grouped"))
    (student,) = compensate(dense, [some_order(dense.spec).plan(0.0).kept], windows_of(dense.spec))
    tokens = some_tokens(dense.spec)
    with torch.no_grad():
        assert largest_difference(student(tokens), dense(tokens)) < 1e-4


def test_the_damping_is_the_one_that_does_best_on_held_out_tokens():
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(30, 4, generator=generator)

    def tokens(count):
        normal = Normal.empty(30, 4)
        z = torch.randn(count, 30, generator=generator)
        normal.add(z, z @ w + 3 * torch.randn(count, 4, generator=generator))
        return normal

    few, many, held = tokens(20), tokens(20_000), tokens(500)
    prior = torch.cat((w, torch.zeros(1, 4))).double()
    assert best_solution(few, held, prior)[1] > best_solution(many, held, torch.zeros_like(prior))[1]


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "unequal-learned"])
@pytest.mark.parametrize("compensated", [True, False])
def test_elastic_levels_equal_compacted_models_up_and_down(name, compensated, tmp_path):
    dense = filled_decoder(make(name))
    windows = Windows(windows_of(dense.spec), ("a",))
    pruner = Pruner(dense, PruningSettings("magnitude", compensate=compensated), windows)
    order = pruner.order(0.7, 0.5)
    plans = [order.plan(0.3, 0.2), order.plan(0.7, 0.5)]
    models = pruner.apply(plans)
    elastic = make_elastic(dense, order, plans, models)
    save_checkpoint(elastic, tmp_path / "e", None, Record())
    tokens = some_tokens(dense.spec)
    with torch.no_grad():
        for model in (elastic, load_checkpoint(tmp_path / "e")):
            whole = model(tokens)
            assert largest_difference(whole, dense(tokens)) < 1e-5
            for number in (1, 0, 1, 0):
                model.set_width(plans[number].heads, plans[number].neurons)
                assert largest_difference(model(tokens), models[number](tokens)) < 1e-5
            model.set_width(0.0)
            assert torch.equal(model(tokens), whole)
            with pytest.raises(InputError, match=r"stored are 0/0, 0\.3/0\.2, 0\.7/0\.5"):
                model.set_width(0.5)
    with pytest.raises(InputError, match="stores no widths"):
        dense.set_width(0.5)


def test_nan_is_named_with_its_layer():
    dense = filled_decoder(spec_of("gpt2"))
    with torch.no_grad():
        dense.blocks[1].attn.out_proj.weight[0, 0] = float("nan")
    windows = Windows(windows_of(dense.spec), ("a",))
    with pytest.raises(InputError, match=r"layers?[ .]1"):
        compensate(dense, [some_order(dense.spec).plan(0.5).kept], windows.tokens)
    with pytest.raises(InputError, match=r"layers?[ .]1"):
        Pruner(dense, PruningSettings("fisher"), windows).order(0.5, 0.0)


class Words:
    """One token per word, for the tests of windows."""

    eos_ids = ()

    def encode(self, text):
        return [hash(word) % 97 for word in text.split()]


def test_windows_come_from_all_texts_in_turn(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.txt").write_text(f"{name}{number} " * 50)
    texts = load_texts(f"{tmp_path / 'a'},{tmp_path / 'b'}", "train")
    windows = sample_windows(texts, Words(), 80, 10)
    assert windows.tokens.shape == (8, 10)
    words = [{hash(f"{t}{n}") % 97 for n in range(5)} for t in "ab"]
    assert all(set(w.tolist()) <= words[i % 2] for i, w in enumerate(windows.tokens))
    assert torch.equal(windows.tokens, sample_windows(texts, Words(), 80, 10).tokens)
    with pytest.raises(InputError, match="too short"):
        sample_windows(texts, Words(), 8000, 10)
    with pytest.raises(InputError, match="none of the built-in"):
        load_texts("nothing-like-it", "train")


def test_built_in_texts_that_can_not_be_had_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SENTINEL_CACHE", str(tmp_path))

    def missing(_):
        raise InputError("not here")

    def present(_):
        return (Document(f"d{number}", f"text {number}") for number in range(60))

    monkeypatch.setattr("sentinel.adapt.text.corpora.BUILT_IN", {"one": present, "two": missing})
    texts = load_texts("built-in", "train")
    assert [text.label for text in texts] == ["one:train"]
    assert "going on without one text: not here" in capsys.readouterr().err
    parts = [load_texts(f"one:{split}", "train")[0].documents for split in ("train", "valid", "test")]
    assert sum(len(part) for part in parts) == 60 and len(parts[0]) > 40
    assert len({document.fingerprint for part in parts for document in part}) == 60
    monkeypatch.setattr("sentinel.adapt.text.corpora.BUILT_IN", {"three": missing})
    with pytest.raises(InputError, match="not here"):
        load_texts("built-in", "train")


def test_judging_by_the_calibration_text_is_refused():
    used, fresh = Document("a.txt", "one two"), Document("b.txt", "three")
    refuse_shared_documents([used.fingerprint], [Text("t", (fresh,))])
    with pytest.raises(InputError, match=r"renamed\.txt was calibrated or trained on"):
        refuse_shared_documents([used.fingerprint], [Text("t", (fresh, Document("renamed.txt", "one\n  two")))])
