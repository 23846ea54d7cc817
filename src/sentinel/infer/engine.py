"""The contract of every engine.

An engine owns weights and any number of *sequences* that go on side by side. Whoever runs a model asks this contract, never
which class an engine is. Shape letters: n sequences, T tokens, V vocabulary. Logits are float32 on the CPU.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.infer.callers import CallerLock, one_at_a_time
from sentinel.infer.levels import check_level
from sentinel.infer.sequence import OpenSequence
from sentinel.infer.token_checks import check_prompts, check_room, check_tokens
from sentinel.models.rotary import turns
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

if TYPE_CHECKING:
    from sentinel.infer.meter import Meter
    from sentinel.infer.native import NativeWeights
    from sentinel.infer.sampling import Sampler, SamplingSettings
    from sentinel.models.decoder import Decoder

Logits = NDArray[np.float32]
States = NDArray[np.float32]


class Ability(Enum):
    """What not every engine can do; the value ends the sentence "it can't ..."."""

    VERIFY = "verify several tokens at once"
    SCORE = "give logits at every position of a text"
    SWITCH_WIDTH = "switch to another width"


@dataclass(frozen=True)
class Memory:
    """Bytes that an engine holds now: all weights, room for keys and values, and areas that passes work in.

    ``work`` is None where every pass takes what it needs and gives it back.
    """

    weights: int
    kv: int
    work: int | None


class Engine(ABC):
    """Runs one model. What a sequence says does not depend on the others that are open.

    One Python thread is served at a time, the others wait. ``max_sequences`` may be open at once (None: as many as memory
    holds). What engines do each in their own way are the methods at the end; everything else is written once, here.
    """

    max_sequences: int | None = None
    draft: Engine | None = None  # a cheaper engine of the same model, which proposes tokens to this one

    def __init__(
        self,
        spec: ModelSpec,
        *,
        name: str,
        level: int,
        precision: str,
        device: str = "cpu",
        supports: Collection[Ability] = tuple(Ability),
    ) -> None:
        self.spec, self.name, self.precision, self.device = spec, name, precision, device
        self.level = check_level(level).number
        self.supports = frozenset(supports)
        self.callers = CallerLock()
        self._turns = turns(spec)  # lengths of a text at which its rotary angles change
        self._open: dict[int, OpenSequence] = {}  # by slot
        self._batch: list[OpenSequence] = []

    # --- sequences --------------------------------------------------------------------------------------------------

    def open(self, prompt: Sequence[int], room: int) -> tuple[OpenSequence, Logits]:
        """`open_all` of one prompt: its sequence and logits [V]."""
        (sequence,), logits = self.open_all([prompt], room)
        return sequence, logits[0]

    @one_at_a_time
    def open_all(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[list[OpenSequence], Logits]:
        """Read prompts of any lengths together: a sequence for each, with room for ``room`` more tokens, and logits [n, V]
        of the next token.

        Other sequences go on. Raises `InputError` for what `check_prompts` refuses, and for too many sequences.
        """
        check_prompts(self.spec, prompts, room)
        sequences = self._place([len(prompt) + room for prompt in prompts])
        try:
            logits = self._start(sequences, prompts)
        except BaseException:
            self.close(*sequences)
            raise
        for sequence, prompt in zip(sequences, prompts, strict=True):
            sequence.length = len(prompt)
        return sequences, logits

    @one_at_a_time
    def step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        """One more token for each of these sequences, in one pass; logits [n, V] of the next ones.

        Any of the open ones, in any order. Raises `InputError` for one that is closed, given twice, or full.
        """
        self._check_step(sequences, tokens)
        logits = self._step(sequences, tokens)
        self._count(sequences)
        return logits

    @one_at_a_time
    def extend(self, sequence: OpenSequence, tokens: Sequence[int]) -> Logits:
        """Read several more tokens, as the rest of a prompt after a fork; logits [V] of the next one."""
        return self._more(sequence, tokens, 1)[0]

    @one_at_a_time
    def verify(self, sequence: OpenSequence, tokens: Sequence[int]) -> Logits:
        """Read several more tokens in one pass; logits [T, V] after each of them. `roll_back` takes wrong ones away."""
        self.require(Ability.VERIFY)
        return self._more(sequence, tokens, len(tokens))

    @one_at_a_time
    def begin(self, room: int) -> OpenSequence:
        """A sequence that has read nothing yet, with room for ``room`` tokens, to be read by `states`."""
        check_room(self.spec, room)
        return self._place([room])[0]

    @one_at_a_time
    def states(self, sequence: OpenSequence, tokens: Sequence[int]) -> States:
        """Read several more tokens, as `extend` does; states [T, C] after the final norm at each of them."""
        return self._more(sequence, tokens, len(tokens), self._states)

    @one_at_a_time
    def roll_back(self, sequence: OpenSequence, n_token: int) -> None:
        """Forget the last ``n_token`` tokens of a sequence, never its first.

        Any number of them, but for a model with attention windows: once a sequence is longer than a window by more than
        128 tokens, it can be 128 tokens shorter than the longest it was, and no more. `InputError` for other numbers.
        """
        self._check_room(sequence, 0)
        sequence.take_away(n_token, self.spec)

    @one_at_a_time
    def fork(self, sequence: OpenSequence, room: int | None = None) -> OpenSequence:
        """Another sequence that has read the same tokens, with room for ``room`` more (as many as the first by default)."""
        self._check_room(sequence, 0)
        limit = sequence.limit if room is None else sequence.length + room
        if not sequence.length <= limit <= self.spec.max_seq_len:
            raise InputError(
                f"{sequence.length} tokens and {room} new ones do not fit the model's context of {self.spec.max_seq_len}"
            )
        (other,) = self._place([limit])
        self._copy(sequence, other)
        other.length, other.most = sequence.length, sequence.reach
        return other

    @one_at_a_time
    def close(self, *sequences: OpenSequence) -> None:
        """End sequences; their room is free for others. One that has ended already stays so."""
        for sequence in sequences:
            if self._open.get(sequence.slot) is sequence:
                del self._open[sequence.slot]

    def is_open(self, sequence: OpenSequence) -> bool:
        """True until the sequence is closed, or all of them end because the width is switched."""
        return self._open.get(sequence.slot) is sequence

    @one_at_a_time
    def score(self, tokens: Sequence[int], last: int | None = None) -> Logits:
        """Logits [T, V] at every position of a text, or [``last``, V] at the last ones; open sequences go on."""
        self.require(Ability.SCORE)
        check_tokens(self.spec, tokens)
        if not 1 <= len(tokens) <= self.spec.max_seq_len:
            raise InputError(f"a text of 1 to {self.spec.max_seq_len} tokens can be scored, not one of {len(tokens)}")
        last = len(tokens) if last is None else last
        if not 1 <= last <= len(tokens):
            raise InputError(f"a text of {len(tokens)} tokens has no last {last}")
        return self._score(tokens, last)

    # --- one batch at a time ----------------------------------------------------------------------------------------

    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits:
        """`open_all`, for whoever runs one batch at a time: the batch before it ends."""
        self.close(*self._batch)
        self._batch = []
        self._batch, logits = self.open_all(prompts, max_new_tokens)
        return logits

    def decode_one_token(self, tokens: Sequence[int]) -> Logits:
        """`step` of every sequence of the batch."""
        return self.step(self.batch, tokens)

    @property
    def batch(self) -> list[OpenSequence]:
        """The sequences of the last `prefill`; `InputError` when there are none, or they have ended."""
        if not self._batch or not all(map(self.is_open, self._batch)):
            raise InputError("there is no batch to go on with; call prefill first")
        return self._batch

    def draft_by(self, draft: Engine, word: str) -> None:
        """Let ``draft`` propose tokens to this engine, whose name then says so by ``word``."""
        self.draft, self.name = draft, f"{self.name}, draft {word}"

    # --- what it can do and costs -----------------------------------------------------------------------------------

    def require(self, ability: Ability, instead: str = "take another level") -> None:
        """`InputError` when it has no such ability; ``instead`` is the mend."""
        if ability not in self.supports:
            raise InputError(f"{self.name} can't {ability.value}; {instead}")

    @property
    def decoder(self) -> Decoder | None:
        """The PyTorch module that it runs, None where it runs none."""
        return None

    @property
    def packed(self) -> NativeWeights | None:
        """The packed weights that it reads, None where it reads none."""
        return None

    @one_at_a_time
    def set_width(self, width: Width) -> None:
        """Use the first head groups and neurons of each layer only. All sequences end.

        Raises `InputError` for counts that a layer does not have.
        """
        self.require(Ability.SWITCH_WIDTH)
        width.check(self.spec)
        self._set_width(width)
        self.close(*list(self._open.values()))

    @property
    def spec_in_use(self) -> ModelSpec:
        """The sizes that take part, at the width that is set."""
        return self.spec

    def step_bytes(self, n_sequence: int, context: float) -> int:
        """The function of that name, at the width that is set."""
        return step_bytes(self.weight_bytes_per_token(), self.spec_in_use, self.kv_bytes, n_sequence, context)

    def chooses(self, settings: SamplingSettings) -> bool:
        """True where `choose_on` chooses tokens by such settings where the logits are, without a way over the host."""
        return False

    def choose_on(
        self, sequences: Sequence[OpenSequence], tokens: Sequence[int], sampler: Sampler, n_token: int
    ) -> Iterator[list[int]]:
        """The next ``n_token`` tokens of these sequences, step by step, from their last ``tokens`` on: those that
        ``sampler`` would choose of the logits of `step`. Only where the engine `chooses`.

        The sequences may be ahead of what has been read of it: close them when no more is wanted.
        """
        raise NotImplementedError

    def meter(self) -> Meter:
        """Tells where the time goes. Raises `InputError` for an engine that can't be profiled."""
        raise InputError(f"{self.name} can't be profiled; profile another level")

    @abstractmethod
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights read to decode one token at batch 1, at the width that is set."""

    @property
    @abstractmethod
    def kv_bytes(self) -> float:
        """Bytes of a cached key or value."""

    @abstractmethod
    def memory(self) -> Memory:
        """Bytes that it holds now."""

    def release(self) -> None:
        """End all sequences, and give back their memory and the engine's threads, until another one is opened; those of
        its draft too."""
        self.close(*list(self._open.values()))
        if self.draft is not None:
            self.draft.release()

    # --- what an engine fills in ------------------------------------------------------------------------------------

    @abstractmethod
    def _make_room(self, n_slot: int, n_position: int) -> None:
        """Hold at least ``n_slot`` slots of ``n_position`` positions; what the sequences in ``_open`` hold stays."""

    @abstractmethod
    def _start(self, sequences: Sequence[OpenSequence], prompts: Sequence[Sequence[int]]) -> Logits:
        """Read a prompt into each slot from its first position; logits [n, V] of the next token."""

    @abstractmethod
    def _step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> Logits:
        """Read a token into each slot; logits [n, V]."""

    @abstractmethod
    def _several(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> Logits:
        """Read tokens into one slot, which may be empty; logits [``last``, V] after the last of them."""

    @abstractmethod
    def _copy(self, source: OpenSequence, target: OpenSequence) -> None:
        """Let a slot hold what another one does."""

    def _states(self, sequence: OpenSequence, tokens: Sequence[int], last: int) -> States:
        """As `_several`, states [``last``, C] after the final norm."""
        raise NotImplementedError

    def _score(self, tokens: Sequence[int], last: int) -> Logits:
        (sequence,) = self._place([len(tokens)])
        try:
            return self._several(sequence, tokens, last)
        finally:
            self.close(sequence)

    def _set_width(self, width: Width) -> None:
        raise NotImplementedError

    # --- the same for all -------------------------------------------------------------------------------------------

    def _place(self, limits: Sequence[int]) -> list[OpenSequence]:
        """Empty sequences with room for so many tokens each, in the lowest slots that are free."""
        total = len(self._open) + len(limits)
        if self.max_sequences is not None and total > self.max_sequences:
            raise InputError(
                f"{self.name} takes at most {self.max_sequences} sequences at once, not {total}; give fewer prompts, or "
                "close some first"
            )
        free = (slot for slot in itertools.count() if slot not in self._open)
        sequences = [OpenSequence(slot, 0, limit) for slot, limit in zip(free, limits, strict=False)]
        self._make_room(1 + max(*self._open, *(sequence.slot for sequence in sequences), 0), max(limits))
        self._open.update({sequence.slot: sequence for sequence in sequences})
        return sequences

    def _more(
        self,
        sequence: OpenSequence,
        tokens: Sequence[int],
        last: int,
        read: Callable[[OpenSequence, Sequence[int], int], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        read = read or self._several
        if not len(tokens):
            raise InputError("there is no token; give at least one")
        self._check_room(sequence, len(tokens))
        check_tokens(self.spec, tokens)
        found: list[NDArray[np.float32]] = []
        start, first = 0, sequence.length
        # Cut where rotary angles turn (longrope), so that a token has those that it would have alone.
        for end in (*(turn - first for turn in self._turns if first < turn < first + len(tokens)), len(tokens)):
            wanted = min(end - start, last - (len(tokens) - end))
            part = read(sequence, tokens[start:end], max(1, wanted))
            sequence.length += end - start
            start = end
            if wanted > 0:
                found.append(part)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _check_step(self, sequences: Sequence[OpenSequence], tokens: Sequence[int]) -> None:
        if not sequences or len(sequences) != len(tokens):
            raise InputError(f"{len(tokens)} tokens were given for {len(sequences)} sequences; give one to each")
        if len({sequence.slot for sequence in sequences}) < len(sequences):
            raise InputError("a sequence was given twice; it takes one token at a time")
        for sequence in sequences:
            self._check_room(sequence, 1)
        check_tokens(self.spec, tokens)

    def _count(self, sequences: Sequence[OpenSequence]) -> None:
        for sequence in sequences:
            sequence.length += 1

    def _check_room(self, sequence: OpenSequence, n_token: int) -> None:
        if self._open.get(sequence.slot) is not sequence:
            raise InputError("the sequence is not open here; open one with a prompt")
        if sequence.length + n_token > sequence.limit:
            raise InputError(
                f"the sequence has room for {sequence.limit} tokens, and {sequence.length} of them are used up; "
                "open it with more room"
            )


def step_bytes(weight_bytes: int, spec: ModelSpec, kv_bytes: float, n_sequence: int, context: float) -> int:
    """Bytes that a step of ``n_sequence`` reads at the least: weights once, keys and values of ``context`` positions each,
    of layers with a window those within it."""
    return weight_bytes + n_sequence * spec.kv_bytes_read(context, kv_bytes)


def warm_up(engine: Engine) -> None:
    """Let an engine compile and allocate what it does at first use, so that no clock counts that."""
    sequence, _ = engine.open([0], 1)
    engine.close(sequence)
