"""Where the time of levels 0 and 1 goes: scopes around the parts of a decoder, there only while it is profiled."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sentinel.errors import InputError
from sentinel.infer.meter import FUSIONS, PYTHON, SAMPLING, Span, Step, components_of
from sentinel.models.decoder import Attention, Decoder
from sentinel.models.integration import Fusion
from sentinel.models.reference import ReferenceAttention, ReferenceHead


class Clock(Protocol):
    """Stamps in the order of execution, and the milliseconds between two of them once they are settled."""

    def stamp(self) -> Any: ...

    def settle(self) -> None: ...

    def milliseconds(self, start: Any, end: Any) -> float: ...


class HostClock:
    """The processor's own time: right where PyTorch computes before it returns."""

    def stamp(self) -> int:
        return time.perf_counter_ns()

    def settle(self) -> None:
        """Nothing is pending."""

    def milliseconds(self, start: int, end: int) -> float:
        return (end - start) / 1e6


class DeviceClock:
    """Events in an accelerator's stream: PyTorch returns before the work is done, so the host's time would be wrong."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        if not hasattr(self._module, "Event"):
            raise InputError(f"PyTorch has no timing events for {device}; profile on the CPU or on CUDA")

    def stamp(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        self._module.synchronize()

    def milliseconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end)


@dataclass
class _Open:
    component: str
    label: str
    parent: int | None
    start: Any
    end: Any = None


class ScopeMeter:
    """Profiles a decoder by wrapping methods of it; they are put back after every generation."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        device = decoder.device
        on_host = device.type == "cpu"
        self._clock: Clock = HostClock() if on_host else DeviceClock(device)
        stamps = "the processor's clock" if on_host else f"events in the stream of {device}"
        self.method = f"scopes around the parts of the decoder, by {stamps}; there only while it is profiled"
        self.components = components_of(decoder.spec, threads=False)
        self.fused = {PYTHON: "calls between the parts, the residual additions, the KV cache's bookkeeping"}
        self._opened: list[_Open] = []
        self._inside: list[int] = []
        self._steps: list[Step] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a generation: the decoder's parts are wrapped meanwhile."""
        places = list(places_of(self._decoder))
        for owner, method, component, label in places:
            setattr(owner, method, self._timed(getattr(owner, method), component, label))
        try:
            yield
        finally:
            for owner, method, _, _ in places:
                delattr(owner, method)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step."""
        with self._scope(PYTHON, "step"):
            yield
        self._steps.append(self._last_step())

    def sampling(self) -> AbstractContextManager[None]:
        """Around the choice of the token."""
        return self._scope(SAMPLING, SAMPLING)

    def take(self) -> list[Step]:
        """The steps since the last call."""
        found, self._steps = self._steps, []
        return found

    @contextmanager
    def _scope(self, component: str, label: str) -> Iterator[None]:
        number = len(self._opened)
        parent = self._inside[-1] if self._inside else None
        self._opened.append(_Open(component, label, parent, self._clock.stamp()))
        self._inside.append(number)
        try:
            yield
        finally:
            self._inside.pop()
            self._opened[number].end = self._clock.stamp()

    def _last_step(self) -> Step:
        """The scopes of the step that has ended."""
        self._clock.settle()
        opened, self._opened = self._opened, []
        totals = [self._clock.milliseconds(scope.start, scope.end) for scope in opened]
        own = list(totals)
        for scope, total in zip(opened, totals, strict=True):
            if scope.parent is not None:
                own[scope.parent] -= total
        begin = opened[0].start
        return Step(
            tuple(
                Span(scope.component, scope.label, self._clock.milliseconds(begin, scope.start), total, max(0.0, mine))
                for scope, total, mine in zip(opened, totals, own, strict=True)
            )
        )

    def _timed(self, call: Any, component: str, label: str) -> Any:
        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self._scope(component, label):
                return call(*arguments, **options)

        return timed


def places_of(decoder: Decoder) -> Iterator[tuple[object, str, str, str]]:
    """Owner, method, component and label of every part of a decoder. Parts may lie within others."""
    yield decoder, "embedded", "embedding", "embedding"
    yield decoder, "rotary", "embedding", "rotary tables"
    yield decoder, "logits", "LM head", "LM head"
    yield decoder.final_norm, "forward", "norms", "final norm"
    yield from _places_of_layers(decoder, "")
    if decoder.integration is not None:
        for fusion in (module for module in decoder.integration.modules() if isinstance(module, Fusion)):
            yield fusion, "forward", FUSIONS, "fusion"
    if decoder.baseline is not None:
        yield decoder.baseline, "embedded", "embedding", "embedding of the baseline"
        yield decoder.baseline, "rotary", "embedding", "rotary tables of the baseline"
        yield from _places_of_layers(decoder.baseline, "baseline ")


def _places_of_layers(decoder: Decoder, prefix: str) -> Iterator[tuple[object, str, str, str]]:
    for index, block in enumerate(decoder.blocks):
        where = f"{prefix}layer {index} "
        for norm, name in (
            (block.attn_norm, "attention norm"),
            (block.mlp_norm, "MLP norm"),
            (block.attn_post_norm, "attention post-norm"),
            (block.mlp_post_norm, "MLP post-norm"),
        ):
            if norm is not None:
                yield norm, "forward", "norms", f"{where}{name}"
        yield block.mlp, "forward", "MLP", f"{where}MLP"
        yield block.attn, "forward", "attention", f"{where}attention"
        attention: Any = block.attn
        if isinstance(attention, ReferenceAttention):
            for head in (head for head in attention.heads.children() if isinstance(head, ReferenceHead)):
                for projection in (head.query, head.key, head.value):
                    yield projection, "forward", "q/k/v", f"{where}q/k/v"
                yield head.out, "forward", "output projection", f"{where}output projection"
        elif isinstance(attention, Attention):
            yield attention, "_queries_keys_values", "q/k/v", f"{where}q/k/v"
            yield attention, "project", "output projection", f"{where}output projection"
