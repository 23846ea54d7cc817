"""What holds for every model: random specifications of every feature, layers that differ and layers that are empty."""

from __future__ import annotations

import numpy as np
import torch
from helpers import filled_decoder, largest_difference, layer_of, some_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentinel.adapt.cycles.masked import Head, MaskedModel
from sentinel.adapt.pruning.compact import expand_kv, select
from sentinel.adapt.pruning.scores import Scores, removal_order
from sentinel.infer.generate import generate_tokens
from sentinel.infer.lookup import PromptLookup
from sentinel.infer.native.weights import SUPPORTS
from sentinel.infer.opening import make_engine
from sentinel.models.elastic import StoredWidth
from sentinel.models.features import features
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.spec import BlockSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec
from sentinel.models.width import Width

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
ROPES = (
    RopeSpec(1e4),
    RopeSpec(5e3, dim=4),
    RopeSpec(1e4, "linear", factor=2.0),
    RopeSpec(1e4, "llama3", factor=8.0, original_max_seq_len=16),
    RopeSpec(1e4, "yarn", factor=4.0, original_max_seq_len=16, attention_factor=1.1),
    RopeSpec(
        1e4, "longrope", original_max_seq_len=16, short_factors=(1.0, 1.1, 1.5, 2.0), long_factors=(2.0, 3.0, 4.0, 9.0)
    ),
)
BLOCKS = (
    BlockSpec(),
    BlockSpec(post_norm=True),
    BlockSpec(pre_norm=False, post_norm=True),
    BlockSpec(parallel=True),
    BlockSpec(parallel=True, shared_norm=True),
    BlockSpec(residual_scale=0.4),
)


@st.composite
def layers(draw: st.DrawFn) -> LayerSpec:
    groups, per_group, flag = draw(st.integers(0, 3)), draw(st.integers(1, 3)), st.booleans()
    return layer_of(
        groups * per_group,
        groups,
        8,
        draw(st.sampled_from((0, 1, 7, 40))),
        rope=draw(st.sampled_from((None, *ROPES))),
        window=draw(st.sampled_from((None, None, 1, 5, 40))),
        qk_norm=draw(st.sampled_from((None, "head", "whole"))),
        scale=draw(st.sampled_from((None, 0.2))),
        soft_cap=draw(st.sampled_from((None, 3.0))),
        activation=draw(st.sampled_from(("gelu_new", "gelu", "silu", "relu"))),
        **{name: draw(flag) for name in ("gated", "qkv_bias", "out_bias", "up_bias", "down_bias")},
    )


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    tied = draw(st.booleans())
    return ModelSpec(
        family="llama",
        vocab_size=61,
        n_embd=24,
        max_seq_len=96,
        layers=tuple(draw(st.lists(layers(), min_size=1, max_size=3))),
        norm=NormSpec(draw(st.sampled_from(("layernorm", "rmsnorm"))), 1e-5),
        tied_head=tied,
        learned_positions=draw(st.booleans()),
        block=draw(st.sampled_from(BLOCKS)),
        head_bias=not tied and draw(st.booleans()),
        embed_scale=draw(st.sampled_from((1.0, 3.0))),
        logit_scale=draw(st.sampled_from((1.0, 0.25))),
        logit_soft_cap=draw(st.sampled_from((None, 5.0))),
    )


def difference(found: np.ndarray, expected: torch.Tensor) -> float:
    return largest_difference(torch.from_numpy(found), expected)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(specs(), st.data())
def test_one_function_however_it_is_computed(spec: ModelSpec, data: st.DataObject) -> None:
    """Whole and at a width: fused = head by head = removed for real = stored = cached."""
    decoder, tokens = filled_decoder(spec), some_tokens(spec, length=20)
    full = Width.full(spec)
    width = Width(*(tuple(data.draw(st.integers(0, n)) for n in counts) for counts in (full.groups, full.neurons)))
    with torch.no_grad():
        whole = decoder(tokens)
        reference = ReferenceDecoder(decoder)
        assert largest_difference(reference(tokens), whole) < 1e-5
        assert largest_difference(expand_kv(decoder)(tokens), whole) < 1e-5
        decoder.use(width)
        narrow = decoder(tokens)
        decoder.use(full)
        reference.use(width)
        assert largest_difference(reference(tokens), narrow) < 1e-5
        removed = select(decoder, width.kept)
        assert removed.spec == width.of(spec) and removed.in_use == width
        assert largest_difference(removed(tokens), narrow) < 1e-5
        decoder.store_widths([StoredWidth(0.5, 0.5, width, {})])
        assert largest_difference(decoder.at_width(0.5, 0.5)(tokens), narrow) < 1e-5
        assert torch.equal(decoder(tokens), whole)
        cache = KVCache(spec, tokens.shape[0], tokens.shape[1])
        steps = [decoder(tokens[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 20))]
        if not any(layer.attention.rope and layer.attention.rope.type == "longrope" for layer in spec.layers):
            assert largest_difference(torch.cat(steps, 1), whole) < 1e-5


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(specs())
def test_the_native_engine_computes_it_too(spec: ModelSpec) -> None:
    assert features(spec) <= SUPPORTS
    decoder, tokens = filled_decoder(spec), some_tokens(spec, batch=1, length=80)
    engine = make_engine(decoder, 2)
    with torch.no_grad():
        expected = decoder(tokens)[0]
    prompt = tokens[0].tolist()
    found = [engine.prefill([prompt[:70]], 10), *(engine.decode_one_token([token]) for token in prompt[70:])]
    assert difference(np.concatenate(found), expected[69:]) < 1e-4


@settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
@given(specs(), st.data())
def test_what_is_parked_and_regrown_is_as_before(spec: ModelSpec, data: st.DataObject) -> None:
    dense, tokens = filled_decoder(spec), some_tokens(spec)
    model = MaskedModel(dense)
    before = model.student()(tokens).detach()
    for _ in range(data.draw(st.integers(1, 3))):
        heads = [Head(i, g) for i, groups in enumerate(model.kept) for g in groups]
        model.park(data.draw(st.lists(st.sampled_from(heads), unique=True)) if heads else [])
        model.take_back(model.student(), model.kept)
        back = model.parked
        model.regrow(data.draw(st.permutations(back)))
    assert not model.parked
    assert largest_difference(model.student()(tokens), before) < 1e-5


@settings(max_examples=30, deadline=None)
@given(specs(), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_plans_of_one_order_are_nested(spec: ModelSpec, seed: int, first: float, second: float) -> None:
    rng = np.random.default_rng(seed)
    groups = tuple(rng.random(layer.n_kv_head) for layer in spec.layers)
    neurons = tuple(rng.random(layer.intermediate_size) for layer in spec.layers)
    order = removal_order(spec, Scores("random", groups, neurons))
    less, more = (order.plan(ratio, ratio) for ratio in sorted((first, second)))
    for ours, theirs in ((less.kept.groups, more.kept.groups), (less.kept.neurons, more.kept.neurons)):
        assert all(kept[: len(other)] == other for kept, other in zip(ours, theirs, strict=True))


@settings(max_examples=10, deadline=None, suppress_health_check=SLOW)
@given(specs(), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_lookup_gives_the_tokens_of_plain_decoding(spec: ModelSpec, prompt: list[int]) -> None:
    engine = make_engine(filled_decoder(spec), 1)
    plain = [step[0] for step in generate_tokens(engine, [prompt], 16)]
    assert [step[0] for step in generate_tokens(engine, [prompt], 16, proposer=PromptLookup())] == plain
