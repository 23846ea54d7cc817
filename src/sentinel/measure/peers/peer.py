"""What every peer offers: the same weights in its own format, and greedy generation of token ids."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sentinel.infer.engine import step_bytes
from sentinel.infer.generate import Timings
from sentinel.models.decoder import Decoder
from sentinel.models.features import Features
from sentinel.models.spec import ModelSpec


@dataclass(frozen=True)
class PeerSettings:
    """What a peer is prepared for: ``room`` is prompt and new tokens together."""

    threads: int
    batch: int
    room: int


class Runner(ABC):
    """A peer with the model loaded.

    A cached key or value takes ``kv_bytes``.
    """

    kv_bytes = 4

    def __init__(self, name: str, spec: ModelSpec, weight_bytes: int) -> None:
        self.name = name
        self._spec, self._weight_bytes = spec, weight_bytes

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights read to decode one token at batch 1."""
        return self._weight_bytes

    def step_bytes(self, n_sequence: int, context: float) -> int:
        """Bytes that a step reads at the least; as `Engine.step_bytes`."""
        return step_bytes(self._weight_bytes, self._spec, self.kv_bytes, n_sequence, context)

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, timings: Timings) -> list[list[int]]:
        """Exactly ``new_tokens`` greedy tokens for each of the equally long ``prompts``; stamps go to ``timings``."""

    def close(self) -> None:  # noqa: B027
        """Let go of the model's files."""


class Peer(Protocol):
    """A module of this package: an inference engine of others, optional here.

    It needs the ``MODULES``, which the packages ``REQUIREMENTS`` hold. ``VARIANTS`` maps its own name of each kind of
    weights to our precision. It runs at most ``MAX_BATCH`` sequences at once, of models that need what it ``SUPPORTS``.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def MODULES(self) -> Sequence[str]: ...

    @property
    def REQUIREMENTS(self) -> Sequence[str]: ...

    @property
    def VARIANTS(self) -> Mapping[str, str]: ...

    @property
    def MAX_BATCH(self) -> int: ...

    @property
    def SUPPORTS(self) -> Features: ...

    def prepare(self, decoder: Decoder, folder: Path, variant: str, settings: PeerSettings) -> Runner:
        """Write ``decoder`` to ``folder`` in the peer's format and load it. `InputError` for what it does not have."""
        ...


def is_installed(peer: Peer) -> bool:
    """True when every module that the peer needs can be imported."""
    return all(importlib.util.find_spec(module) is not None for module in peer.MODULES)
