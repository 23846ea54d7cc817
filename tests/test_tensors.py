"""The table of tensors: what it says is what the decoder has, and taking, cutting and bringing back follow from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import filled_decoder, largest_difference, layer_of, some_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel.models.decoder import Decoder
from sentinel.models.spec import BlockSpec, IntegrationSpec, ModelSpec, NormSpec, RopeSpec
from sentinel.models.tensors import by_unit, prefix, pruned_tensors, put_back, take, tensors_of, with_gates_folded
from sentinel.models.width import Kept, Width

BLOCKS = (
    BlockSpec(),
    BlockSpec(post_norm=True),
    BlockSpec(pre_norm=False, post_norm=True),
    BlockSpec(parallel=True),
    BlockSpec(parallel=True, shared_norm=True, residual_scale=0.5),
)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    rotary, flag = draw(st.booleans()), st.booleans()
    features = {name: draw(flag) for name in ("gated", "qkv_bias", "out_bias", "up_bias", "down_bias")}
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups, per_group = draw(st.integers(0, 3)), draw(st.integers(1, 2))
        norms = {"qk_norm": draw(st.sampled_from((None, "head", "whole")))}
        sizes = (groups * per_group, groups, 4, draw(st.sampled_from((0, 1, 5))))
        layers.append(layer_of(*sizes, rope=RopeSpec(1e4) if rotary else None, **features, **norms))
    tied = draw(flag)
    return ModelSpec(
        family="llama" if rotary else "gpt2",
        vocab_size=11,
        n_embd=8,
        max_seq_len=32,
        layers=tuple(layers),
        norm=NormSpec("rmsnorm" if rotary else "layernorm", 1e-5),
        learned_positions=not rotary,
        tied_head=tied,
        head_bias=not tied and draw(flag),
        block=draw(st.sampled_from(BLOCKS)),
    )


def rotary_spec(sizes: tuple[tuple[int, int, int, int], ...], *, biases: bool = True, tied: bool = False) -> ModelSpec:
    """A gated model with rotary positions whose layers have these sizes."""
    features = dict.fromkeys(("qkv_bias", "out_bias", "up_bias", "down_bias"), biases)
    layers = tuple(layer_of(*size, gated=True, rope=RopeSpec(1e4), **features) for size in sizes)
    return ModelSpec("llama", 11, 8, 32, layers, NormSpec("rmsnorm", 1e-5), tied_head=tied)


def shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}


@settings(max_examples=60, deadline=None)
@given(specs())
def test_the_table_is_the_decoders_state(spec: ModelSpec) -> None:
    assert {tensor.name: tensor.shape for tensor in tensors_of(spec)} == shapes(Decoder.empty(spec))
    for tensor in pruned_tensors(spec):
        assert tensor.shape[tensor.axis] == tensor.count * tensor.size


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("skips", [True, False])
def test_the_table_holds_fusions_and_the_baseline(rank: int | None, skips: bool) -> None:
    plain = rotary_spec(((2, 1, 4, 6),) * 3, biases=False, tied=True)
    unpruned = dataclasses.replace(plain, layers=plain.layers[:-1])
    spec = dataclasses.replace(plain, integration=IntegrationSpec(skips, unpruned, rank))
    assert {tensor.name: tensor.shape for tensor in tensors_of(spec)} == shapes(Decoder.empty(spec))
    assert not any("baseline" in tensor.name for tensor in pruned_tensors(spec))


def some_kept(spec: ModelSpec) -> Kept:
    """Every other unit, last ones first."""
    return Kept(
        [list(range(0, layer.n_kv_head, 2))[::-1] for layer in spec.layers],
        [list(range(0, layer.intermediate_size, 2))[::-1] for layer in spec.layers],
    )


@settings(max_examples=40, deadline=None)
@given(specs())
def test_torch_and_numpy_take_the_same(spec: ModelSpec) -> None:
    state, kept = filled_decoder(spec).state_dict(), some_kept(spec)
    ours = take(state, spec, kept)
    theirs = take({name: tensor.numpy() for name, tensor in state.items()}, spec, kept)
    smaller = kept.width.of(spec)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        t.name: t.shape for t in tensors_of(smaller)
    }
    assert all(np.array_equal(ours[name].numpy(), theirs[name]) for name in ours)


@settings(max_examples=40, deadline=None)
@given(specs())
def test_what_is_put_back_stands_where_it_was_taken(spec: ModelSpec) -> None:
    state, kept = filled_decoder(spec).state_dict(), some_kept(spec)
    before = {name: tensor.clone() for name, tensor in state.items()}
    put_back(state, spec, kept, take(state, spec, kept))
    assert all(torch.equal(state[name], before[name]) for name in state)
    changed = {name: tensor + 1 for name, tensor in take(state, spec, kept).items()}
    put_back(state, spec, kept, changed)
    for tensor in pruned_tensors(spec):
        moved = by_unit(state[tensor.name] - before[tensor.name], tensor).movedim(tensor.axis, 0)
        expected = torch.zeros(tensor.count)
        expected[tensor.kept(kept)] = 1.0
        assert moved.numel() == 0 or torch.allclose(moved.flatten(1).T, expected, atol=1e-6)


def test_a_prefix_of_units_is_what_a_decoder_set_to_it_computes() -> None:
    spec = rotary_spec(((4, 2, 4, 6), (2, 2, 4, 5)))
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    width = Width((1, 0), (3, 5))
    smaller = Decoder.empty(width.of(spec))
    smaller.load_state_dict(prefix(decoder.state_dict(), spec, width), assign=True)
    decoder.use(width)
    assert largest_difference(smaller.eval()(tokens), decoder(tokens)) < 1e-5


def test_folded_gates_leave_the_function_as_it_is() -> None:
    spec = rotary_spec(((4, 2, 4, 6), (0, 0, 4, 5)))
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    with torch.no_grad():
        decoder.blocks[0].attn.gate.copy_(torch.tensor([0.5, 2.0, 0.0, -1.0]))
    plain = Decoder.empty(spec)
    folded = with_gates_folded(decoder.state_dict(), spec)
    gates = {f"layers.{i}.attn.gate": torch.ones(layer.n_head) for i, layer in enumerate(spec.layers)}
    plain.load_state_dict(folded | gates, assign=True)
    assert largest_difference(plain.eval()(tokens), decoder(tokens)) < 1e-5
