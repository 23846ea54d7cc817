"""The clock of the compiled step: every part's time is counted under its own number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import spec_of
from helpers import filled_decoder, with_layers

from sentinel.adapt.integration import integrate
from sentinel.infer.native import NativeEngine
from sentinel.infer.native.kernels.cpu import IS_X86
from sentinel.infer.native.kernels.names import Part
from sentinel.infer.pack import pack
from sentinel.models.spec import ModelSpec

pytestmark = pytest.mark.skipif(not IS_X86, reason="the time-stamp counter is read on x86 only")

ATTENTION = {Part.NORM, Part.QKV, Part.CACHE, Part.ATTENTION, Part.OUT}
MLP = {Part.NORM2, Part.UP, Part.QUANTISE, Part.DOWN}


def small(name: str = "gpt2", **changes) -> ModelSpec:
    return dataclasses.replace(spec_of(name), **changes)


def counts(model, tokens: int = 1, precision="fp32") -> dict[Part, int]:
    """Ticks per part of a pass of ``tokens`` tokens after a prompt of one; the least of several, a busy machine's aside."""
    engine = NativeEngine(pack(model, precision), threads=1)
    seen = []
    for _ in range(7):
        engine.prefill([[1]], tokens + 1)
        engine.profile()
        engine.verify(engine.batch[0], list(range(tokens))) if tokens > 1 else engine.decode_one_token([2])
        found = engine.profile()
        assert set(found) == {part.name.lower() for part in Part}
        seen.append([found[part.name.lower()] for part in Part])
    engine.release()
    return dict(zip(Part, np.min(seen, axis=0).tolist(), strict=True))


def taken(model) -> set[Part]:
    return {part for part, ticks in counts(model).items() if ticks}


EMPTY = (0, 0, 8, 0)
HEADS = (2, 2, 8, 0)
NEURONS = (0, 0, 8, 20)


@pytest.mark.parametrize(
    ("layer", "biases", "parts"),
    [
        (EMPTY, False, set()),
        (EMPTY, True, {Part.OUT, Part.QUANTISE, Part.DOWN}),
        (HEADS, False, ATTENTION),
        (NEURONS, False, MLP),
        (HEADS, True, ATTENTION | {Part.QUANTISE, Part.DOWN}),
        (NEURONS, True, MLP | {Part.OUT}),
    ],
)
def test_what_a_layer_lacks_takes_no_time(layer, biases, parts):
    """A projection without inputs still adds its bias; what makes its inputs does not run."""
    spec = with_layers(small(), layer, layer, out_bias=biases, down_bias=biases)
    assert taken(filled_decoder(spec)) == parts | {Part.EMBED, Part.HEAD}


def test_fusions_take_time_only_in_an_integration():
    model = filled_decoder(with_layers(small(), EMPTY, EMPTY, out_bias=False, down_bias=False))
    assert taken(integrate(model, rank=2)) == {Part.EMBED, Part.HEAD, Part.FUSE}
    assert Part.FUSE not in taken(filled_decoder(small()))


def test_each_part_is_dearest_where_it_has_the_most_to_do():
    """Of two parts, the one that has many times the work of the other in a model takes longer there."""
    ends = small(vocab_size=20_000)
    found = counts(filled_decoder(with_layers(ends, EMPTY)))
    assert found[Part.HEAD] > found[Part.EMBED]
    wide = small(n_embd=1024)
    found = counts(filled_decoder(with_layers(wide, (64, 1, 8, 1024))))
    assert found[Part.QKV] > found[Part.ATTENTION] > found[Part.CACHE]  # 64 heads attend to one key and value
    assert found[Part.QKV] > found[Part.NORM]
    assert found[Part.UP] > found[Part.NORM2] and found[Part.DOWN] > found[Part.QUANTISE]
    narrow = small("llama-grouped", n_embd=8)
    found = counts(filled_decoder(with_layers(narrow, (64, 64, 16, 3000), activation="gelu", gated=False)), tokens=32)
    assert found[Part.CACHE] > found[Part.NORM]  # 64 heads are rotated
    assert found[Part.ATTENTION] > found[Part.OUT]
    assert found[Part.UP] > found[Part.DOWN]  # the activation is an error function
    found = counts(filled_decoder(with_layers(small(n_embd=1024), (1, 1, 1, 0))))
    assert found[Part.NORM] > found[Part.CACHE]
