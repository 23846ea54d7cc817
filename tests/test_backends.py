"""What each backend says that it can do, and that it refuses the rest by name."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from conftest import spec_of
from helpers import filled_decoder, layer_of, with_layers

from sentinel.errors import InputError
from sentinel.formats.gguf import writer
from sentinel.formats.hugging_face import model as hugging_face
from sentinel.infer.native import weights
from sentinel.infer.opening import make_engine
from sentinel.measure.peers import PEERS
from sentinel.measure.suites.peers import able
from sentinel.models import decoder, features, reference
from sentinel.models.decoder import Decoder
from sentinel.models.features import ALL, require_supported
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.spec import ModelSpec, NormSpec

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


BACKENDS = {
    "the decoder": lambda model, folder: Decoder(model.spec),
    "the reference (level 0)": lambda model, folder: ReferenceDecoder(model),
    "the native engine (levels 2 and 3)": lambda model, folder: make_engine(model, 2),
    "Hugging Face's own class": lambda model, folder: hugging_face.to_hugging_face(model),
    "llama.cpp's architecture llama": lambda model, folder: writer.write_gguf(
        model, folder / "model.gguf", gguf.GGMLQuantizationType.F32
    ),
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
    for claimed in (hugging_face.SUPPORTS, *writer.SUPPORTS.values(), *(peer.SUPPORTS for peer in PEERS)):
        assert claimed < ALL


def test_mlps_of_several_kinds_are_a_feature():
    layers = [layer_of(2, 2, 8, 16, activation=name, gated=gated) for name, gated in (("silu", True), ("relu", True))]
    spec = ModelSpec("llama", 61, 16, 32, tuple(layers), NormSpec("rmsnorm", 1e-5), tied_head=True)
    assert "MLPs of several kinds" in features.features(spec)
    with pytest.raises(InputError, match="does not support MLPs of several kinds"):
        require_supported(spec, ALL - features.MIXED_MLPS, "the toy")
