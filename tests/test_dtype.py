"""Weights in the type that they are stored in: PyTorch computes in it, what packs them reads them tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import spec_of
from family_configs import hugging_face
from helpers import filled_decoder, largest_difference, letter_tokenizer, some_tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import sentinel
from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.cli import main
from sentinel.commands.arguments import DTYPES as CHOICES
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.gguf.export import write_gguf
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.hugging_face.model import SentinelForCausalLM, to_hugging_face
from sentinel.formats.random_weights import random_decoder
from sentinel.formats.sources import load
from sentinel.infer.opening import open_engine
from sentinel.infer.pack import pack
from sentinel.models.dtypes import AUTO, DTYPES
from sentinel.models.families import family_of

# By type: the share of the largest logit that its rounding may make.
HALVES = {"bf16": 4e-2, "fp16": 6e-3}
EVERY_HALF = pytest.mark.parametrize("name", HALVES)


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> dict[str, str]:
    """A Hugging Face model stored in each of the halves."""
    found = {}
    for name in HALVES:
        found[name] = str(tmp_path_factory.mktemp("models") / name)
        decoder = filled_decoder(spec_of("llama-grouped"))
        to_hugging_face(decoder.to(DTYPES[name])).save_pretrained(found[name])
    return found


def test_the_command_line_knows_every_type():
    assert (AUTO, *DTYPES) == CHOICES


@EVERY_HALF
@pytest.mark.parametrize(
    "family", ["llama-yarn", "gemma", "gemma2", "gemma3", "gpt_neox", "granite", "olmo2", "phi", "opt"]
)
def test_logits_are_hugging_faces_in_that_type(family, name, tmp_path):
    hugging_face(family).to(DTYPES[name]).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=DTYPES[name]).eval()
    ours = load_checkpoint(tmp_path, None)
    assert ours.dtype == DTYPES[name]
    tokens = some_tokens(ours.spec)
    with torch.no_grad():
        found, expected = ours(tokens), theirs(tokens).logits
    assert found.dtype == expected.dtype
    assert largest_difference(found.float(), expected.float()) < HALVES[name]
    in_fp32 = load_checkpoint(tmp_path)
    exact = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert largest_difference(in_fp32(tokens), exact(tokens).logits) < 1e-5


@EVERY_HALF
def test_what_is_stored_stays(name, halves, tmp_path):
    model = sentinel.load(halves[name], dtype="auto")
    assert model.precision == name
    assert {p.dtype for p in model.decoder.parameters()} == {DTYPES[name]}
    model.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["dtype"] == str(DTYPES[name]).removeprefix("torch.")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {DTYPES[name]}
    again = sentinel.load(tmp_path / "saved", dtype="auto")
    assert again.precision == name
    tokens = some_tokens(model.spec)
    with torch.no_grad():
        assert torch.equal(again.decoder(tokens), model.decoder(tokens))
    wrapped = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert wrapped.dtype == DTYPES[name]
    assert sentinel.load(halves[name]).precision == "fp32"
    assert sentinel.load(halves[name], dtype="bf16").precision == "bf16"


@EVERY_HALF
def test_the_hugging_face_class_takes_a_type(name, tmp_path):
    decoder = filled_decoder(spec_of("llama-grouped"))
    save_checkpoint(decoder, tmp_path / "a")
    model = SentinelForCausalLM.from_pretrained(tmp_path / "a", dtype=DTYPES[name])
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, load_checkpoint(tmp_path / "a", DTYPES[name]).to(DTYPES[name])(tokens))
    model.save_pretrained(tmp_path / "b")
    assert load_checkpoint(tmp_path / "b", None).dtype == DTYPES[name]


def test_norms_of_one_plus_a_weight_lose_nothing(tmp_path):
    """Gemma stores 1 less than it multiplies by: in a half the sum would have fewer digits than what is stored."""
    hugging_face("gemma").to(torch.bfloat16).save_pretrained(tmp_path / "a")
    kept, exact = load_checkpoint(tmp_path / "a", None), load_checkpoint(tmp_path / "a")
    save_checkpoint(kept, tmp_path / "b")
    for decoder in (kept, load_checkpoint(tmp_path / "b", None)):
        assert decoder.dtype == torch.bfloat16
        assert torch.equal(decoder.final_norm.weight, exact.final_norm.weight)
        assert all(torch.equal(p.float(), q) for p, q in zip(decoder.parameters(), exact.parameters(), strict=True))


@pytest.mark.parametrize("level", [0, 1])
def test_pytorch_computes_in_it(level, halves):
    opened = open_engine(halves["bf16"], level=level, dtype="auto")
    engine, exact = opened.engine, open_engine(halves["bf16"], level=level).engine
    assert (engine.precision, exact.precision) == ("bf16", "fp32")
    assert 2 * engine.weight_bytes_per_token() == exact.weight_bytes_per_token()
    assert 2 * engine.memory().weights == exact.memory().weights
    assert (engine.kv_bytes, exact.kv_bytes) == (2, 4)
    prompts = [[1, 2, 3, 4], [5, 6]]
    found, expected = (torch.tensor(e.prefill(prompts, 2)) for e in (engine, exact))
    assert 0 < largest_difference(found, expected) < HALVES["bf16"]
    found, expected = (torch.tensor(e.decode_one_token([7, 8])) for e in (engine, exact))
    assert 0 < largest_difference(found, expected) < HALVES["bf16"]


@pytest.mark.parametrize(("level", "precision"), [(2, "fp32"), (3, "int8"), (3, "int4")])
def test_packed_weights_are_those_of_fp32(level, precision, halves):
    packed = [pack(load(halves["bf16"], dtype=dtype).decoder, precision) for dtype in ("auto", "fp32")]
    assert packed[0].parts == packed[1].parts
    assert np.array_equal(packed[0].data, packed[1].data)
    engine = open_engine(halves["bf16"], level=level, precision=precision).engine
    assert np.array_equal(engine.packed.data, packed[0].data)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("q8_0", torch.float32)]
)
def test_a_gguf_file_keeps_its_halves(kind, dtype, tmp_path):
    spec = spec_of("llama-grouped")
    write_gguf(random_decoder(spec, 0), None, tmp_path / "m.gguf", kind)
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.stored_dtype() == dtype
    halves, exact = (file.stored(kept).whole_state() for kept in (file.stored_dtype(), None))
    assert all(torch.equal(tensor[:].to(dtype), halves[name][:]) for name, tensor in exact.items())


def test_an_elastic_model_switches_widths_in_it(elastic):
    decoder = load_checkpoint(elastic, torch.bfloat16)
    exact = load_checkpoint(elastic)
    tokens = some_tokens(decoder.spec)
    for width in ((0.5, 0.5), (0.0, 0.0)):
        decoder.set_width(*width)
        exact.set_width(*width)
        with torch.no_grad():
            assert largest_difference(decoder(tokens).float(), exact(tokens)) < 2 * HALVES["bf16"]


def test_random_weights_are_those_of_fp32_rounded():
    spec = spec_of("gpt2")
    for found, exact in zip(
        random_decoder(spec, 3, torch.bfloat16).parameters(), random_decoder(spec, 3).parameters(), strict=True
    ):
        assert torch.equal(found, exact.to(torch.bfloat16))


def test_what_changes_a_model_computes_in_fp32(halves):
    given = sentinel.load(halves["bf16"], dtype="auto")
    settings = PruningSettings("magnitude", compensate=False)
    made = given.prune(heads=0.5, settings=settings)
    expected = sentinel.load(halves["bf16"]).prune(heads=0.5, settings=settings)
    assert (given.precision, made.precision) == ("bf16", "fp32")
    state, exact = made.decoder.state_dict(), expected.decoder.state_dict()
    assert all(torch.equal(state[name], exact[name]) for name in exact)
    assert given.integrate("no-baseline").precision == "fp32"


def test_what_takes_no_half_is_refused_by_name(halves):
    decoder = load(halves["bf16"], dtype="auto").decoder
    with pytest.raises(InputError, match="pruning computes in fp32, and this model is held in bf16"):
        Pruner(decoder, PruningSettings("magnitude", compensate=False), None)
    with pytest.raises(InputError, match="recovery computes in fp32"):
        recover(decoder, decoder, some_tokens(decoder.spec), some_tokens(decoder.spec), RecoverySettings(steps=1))
    with pytest.raises(InputError, match="integration computes in fp32"):
        integrate(decoder, "no-baseline")
    with pytest.raises(InputError, match="'half' is not known; it is auto, fp32, bf16, fp16"):
        sentinel.load(halves["bf16"], dtype="half")


def test_a_quantised_model_has_no_other_type(halves, tmp_path):
    sentinel.quantize(halves["bf16"]).save(tmp_path / "q")
    assert sentinel.load(tmp_path / "q", dtype="auto").precision == "int8"
    for refused in (
        lambda: sentinel.load(tmp_path / "q", dtype="bf16"),
        lambda: open_engine(str(tmp_path / "q"), dtype="fp32"),
    ):
        with pytest.raises(InputError, match="leave out dtype"):
            refused()


def test_the_commands_take_it(tmp_path, capsys):
    decoder = filled_decoder(dataclasses.replace(spec_of("llama-grouped"), vocab_size=17)).to(torch.bfloat16)
    save_checkpoint(decoder, tmp_path / "m", letter_tokenizer())
    assert main(["generate", str(tmp_path / "m"), "a b", "--dtype", "auto", "--max-new-tokens", "2"]) == 0
    assert main(["info", str(tmp_path / "m"), "--dtype", "auto"]) == 0
    assert "MB in bf16" in capsys.readouterr().out
    assert main(["quantize", str(tmp_path / "m"), "-o", str(tmp_path / "q"), "--dtype", "fp32"]) == 0


PEAK = """
import sys
from sentinel.formats.sources import load
from sentinel.infer.pack import pack
from sentinel.measure.memory import peak_rss_mb, reset_peak
from sentinel.progress import console
console.quiet = True
pack(load(sys.argv[2], dtype="auto").decoder, "int8")  # what is imported and compiled at first use
reset_peak()
before = peak_rss_mb()
packed = pack(load(sys.argv[1], dtype=sys.argv[3]).decoder, "int8")
print(peak_rss_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux alone")
@EVERY_HALF
def test_speeds_are_measured_in_it_and_what_computes_in_fp32_is_refused(name, halves):
    model = sentinel.load(halves[name], dtype=name)
    small = {"prompt_tokens": 6, "new_tokens": 2, "rounds": 1}
    rows = sentinel.bench("pruning", model, levels=(0, 1), heads=(0.0, 0.5), neurons=0.0, **small).results
    assert {row.precision for row in rows} == {name}
    whole = {row.engine: row.weight_bytes_per_token for row in rows if not row.heads_pruned}
    assert whole["level 1"] == whole["hf-generate"] == model.spec.weight_bytes_per_token(2)
    with pytest.raises(InputError, match=f"suite scaling computes in fp32, and this model is held in {name}"):
        sentinel.bench("scaling", model, **small)


def test_quantising_holds_no_copy_in_fp32(halves, tmp_path):
    """The peak while a model in bf16 is quantised: what is stored, what is packed, and the copies of one layer."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 32, "num_attention_heads": 8}
    spec = family_of("llama").spec_from_config({"model_type": "llama", "vocab_size": 1000, **sizes})
    save_checkpoint(random_decoder(spec, 0, torch.bfloat16), tmp_path / "m")
    peaks = {}
    for dtype in ("auto", "fp32"):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "m"), halves["bf16"], dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[dtype] = float(done.stdout) * 1e6 / spec.parameter_count()
    assert peaks["auto"] < 4.0 < peaks["fp32"]  # bytes a weight
