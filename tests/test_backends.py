"""What each backend says that it can do, and that it refuses the rest by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import spec_of
from helpers import filled_decoder, layer_of, with_layers

from sentinel.errors import InputError
from sentinel.formats.gguf.export import SUPPORTS as GGUF
from sentinel.formats.gguf.export import write_gguf
from sentinel.formats.hugging_face import model as hugging_face
from sentinel.formats.hugging_face.export import write_hugging_face
from sentinel.infer.native import weights
from sentinel.infer.opening import make_engine
from sentinel.measure.peers import PEERS
from sentinel.measure.suites.peers import able
from sentinel.models import decoder, features, reference
from sentinel.models.decoder import Decoder
from sentinel.models.features import ALL, require_supported
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.spec import BlockSpec, IntegrationSpec, LayerSpec, ModelSpec, NormSpec, RopeSpec

NEW = "a feature of tomorrow"
PLAIN = with_layers(spec_of("llama-grouped"), *((4, 2, 16, 32),) * 2)  # all of them can do it


def ctranslate2(model: Decoder, folder: Path) -> None:
    pytest.importorskip("ctranslate2")
    from sentinel.formats.ctranslate2 import write_model

    write_model(model, folder / "model", None)


def onnx(model: Decoder, folder: Path) -> None:
    pytest.importorskip("onnx")
    from sentinel.formats.onnx_graph import write_onnx

    write_onnx(model, folder / "model.onnx", "fp32")


def exported(model: Decoder, folder: Path) -> None:
    write_hugging_face(model, None, folder, "fp32")


BACKENDS = {
    "a folder for Hugging Face": exported,
    "the decoder": lambda model, folder: Decoder(model.spec),
    "the reference (level 0)": lambda model, folder: ReferenceDecoder(model),
    "the native engine (levels 2 and 3)": lambda model, folder: make_engine(model, 2),
    "Hugging Face's own class": lambda model, folder: hugging_face.to_hugging_face(model),
    "llama.cpp's architecture llama": lambda model, folder: write_gguf(model, None, folder / "model.gguf", "fp32"),
    "ctranslate2": ctranslate2,
    "this ONNX graph": onnx,
}


@pytest.mark.parametrize("who", BACKENDS)
def test_a_feature_that_nobody_has_is_refused_by_name(who, tmp_path, monkeypatch):
    model = filled_decoder(PLAIN)
    BACKENDS[who](model, tmp_path)  # without it nothing is refused
    of_model = features._of_model
    monkeypatch.setattr(features, "ALL", ALL | {NEW})
    monkeypatch.setattr(features, "_of_model", lambda spec: [*of_model(spec), NEW])
    with pytest.raises(InputError) as error:
        BACKENDS[who](model, tmp_path)
    assert str(error.value) == f"{who} can't do this model: it does not support {NEW}"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.NAME)
def test_so_it_is_by_every_peer(peer, monkeypatch, capsys):
    from sentinel.progress import console

    assert able([peer], PLAIN) == [peer]
    of_model = features._of_model
    monkeypatch.setattr(features, "ALL", ALL | {NEW})
    monkeypatch.setattr(features, "_of_model", lambda spec: [*of_model(spec), NEW])
    monkeypatch.setattr(console, "quiet", False)
    assert able([peer], PLAIN) == []
    assert (
        f"{peer.NAME} is left out: {peer.NAME} can't do this model: it does not support {NEW}"
        in capsys.readouterr().err
    )


def test_what_is_claimed_exists_and_the_decoder_its_oracle_and_the_native_engine_do_all_of_it():
    for module in (decoder, reference, weights):
        assert module.SUPPORTS == ALL
    for claimed in (hugging_face.SUPPORTS, GGUF, *(peer.SUPPORTS for peer in PEERS)):
        assert claimed < ALL


ROPE = RopeSpec(1e4)
LONGROPE = RopeSpec(1e4, "longrope", short_factors=(1.0,) * 4, long_factors=(2.0,) * 4)


def layer(n_head: int = 2, n_kv_head: int = 2, neurons: int = 16, **fields) -> LayerSpec:
    return layer_of(n_head, n_kv_head, 8, neurons, **{"rope": ROPE, "gated": True, **fields})


def spec(*layers: LayerSpec, **fields) -> ModelSpec:
    made = {"norm": NormSpec("rmsnorm", 1e-5), "tied_head": False, **fields}
    return ModelSpec("llama", 61, 16, 32, layers or (layer(), layer()), **made)


def alike(**fields) -> ModelSpec:
    """Two layers with these fields."""
    return spec(layer(**fields), layer(**fields))


def second(**fields) -> ModelSpec:
    """A second layer with these fields."""
    return spec(layer(), layer(**fields))


OF_PLAIN = {"RMSNorm", "an LM head of its own", "activation silu", "gated MLP", "rotary positions"}
SKIPS = IntegrationSpec(skips=True, baseline=None, rank=4)
BASELINE = IntegrationSpec(skips=False, baseline=spec(layer(), logit_scale=0.5), rank=4)
OF_QKV = "a bias of queries, keys and values"
# A model that differs from `spec()`, what it needs besides, and what it does not need.
CHANGES: list[tuple[ModelSpec, set[str], set[str]]] = [
    (spec(norm=NormSpec("layernorm", 1e-5)), {"LayerNorm"}, {"RMSNorm"}),
    (spec(tied_head=True), {"tied LM head"}, {"an LM head of its own"}),
    (spec(learned_positions=True), {"learned positions"}, set()),
    (spec(head_bias=True), {"a bias of the LM head"}, set()),
    (spec(embed_scale=2.0), {"a scale of the embeddings"}, set()),
    (spec(logit_scale=0.5), {"a scale of the logits"}, set()),
    (spec(logit_soft_cap=30.0), {"a soft cap of the logits"}, set()),
    (spec(block=BlockSpec(post_norm=True)), {"norms after the halves"}, set()),
    (
        spec(block=BlockSpec(pre_norm=False, post_norm=True)),
        {"norms after the halves", "no norms before the halves"},
        set(),
    ),
    (spec(block=BlockSpec(parallel=True)), {"parallel halves"}, set()),
    (
        spec(block=BlockSpec(parallel=True, shared_norm=True)),
        {"parallel halves", "a norm shared by both halves"},
        set(),
    ),
    (spec(block=BlockSpec(residual_scale=0.5)), {"a scale of what layers add"}, set()),
    (spec(integration=SKIPS), {"skips"}, set()),
    (spec(integration=BASELINE), {"baseline integration", "a scale of the logits"}, set()),
    (second(neurons=15), {"layers of unequal sizes"}, set()),
    (second(n_head=0, n_kv_head=0), {"layers of unequal sizes", "layers without heads"}, set()),
    (second(neurons=0), {"layers of unequal sizes", "layers without neurons"}, set()),
    (alike(n_kv_head=1), {"grouped heads"}, set()),
    (second(gated=False), {"MLPs of several kinds", "plain MLP"}, set()),
    (second(activation="relu"), {"MLPs of several kinds", "activation relu"}, set()),
    (alike(activation="gelu"), {"activation gelu"}, {"activation silu"}),
    (alike(gated=False), {"plain MLP"}, {"gated MLP"}),
    (second(qkv_bias=True), {"biases in some layers only", OF_QKV}, set()),
    (alike(qkv_bias=True), {OF_QKV}, set()),
    (alike(out_bias=True), {"a bias of the attention output"}, set()),
    (alike(up_bias=True), {"a bias of the neurons"}, set()),
    (alike(down_bias=True), {"a bias of the MLP output"}, set()),
    (second(rope=None), {"rotary positions in some layers only"}, set()),
    (second(rope=RopeSpec(1e6)), {"rotary positions that differ between layers"}, set()),
    (alike(rope=None), {"no positions"}, {"rotary positions"}),
    (alike(rope=RopeSpec(1e4, dim=4)), {"rotary positions of a part of each head"}, set()),
    (alike(rope=RopeSpec(1e4, "linear", factor=2.0)), {"rotary scaling linear"}, set()),
    (alike(rope=LONGROPE), {"rotary scaling longrope"}, set()),
    (second(window=4), {"attention windows"}, set()),
    (second(qk_norm="head"), {"norms of queries and keys, per head"}, set()),
    (second(qk_norm="whole"), {"norms of queries and keys, over all heads"}, set()),
    (second(scale=0.2), {"an attention scale of its own"}, set()),
    (second(soft_cap=30.0), {"soft caps of attention"}, set()),
]


@pytest.mark.parametrize(("changed", "more", "less"), CHANGES, ids=[", ".join(sorted(more)) for _, more, _ in CHANGES])
def test_a_model_needs_what_it_has_and_nothing_else(changed, more, less):
    assert features.features(spec()) == OF_PLAIN
    assert features.features(changed) == (OF_PLAIN - less) | more
    with pytest.raises(InputError, match=re.escape(f"the toy can't do this model: it does not support {min(more)}")):
        require_supported(changed, ALL - more, "the toy")


def test_learned_positions_are_positions():
    assert "no positions" not in features.features(spec(*[layer(rope=None)] * 2, learned_positions=True))
