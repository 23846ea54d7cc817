"""Save and load, for models whose layers all differ, and through Hugging Face's own interface."""

from __future__ import annotations

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, some_tokens
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.hugging_face.model import SentinelForCausalLM
from sentinel.models.record import Record


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_round_trip_of_unequal_layers(tmp_path, positions):
    decoder = filled_decoder(unequal_spec(positions))
    save_checkpoint(decoder, tmp_path / "a", None, Record())
    again = load_checkpoint(tmp_path / "a")
    assert again.spec == decoder.spec
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert torch.equal(again(tokens), decoder(tokens))
    assert len({file.stat().st_mode for file in (tmp_path / "a").iterdir()}) == 1  # all readable by the same people


def test_hugging_face_round_trip_and_generate(tmp_path):
    decoder = filled_decoder(unequal_spec())
    save_checkpoint(decoder, tmp_path / "a", None, Record())
    assert AutoConfig.from_pretrained(tmp_path / "a").model_spec() == decoder.spec
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert isinstance(model, SentinelForCausalLM)
    model.save_pretrained(tmp_path / "b")
    tokens = some_tokens(decoder.spec, batch=1, length=5)
    with torch.no_grad():
        expected = decoder(tokens)
        assert torch.equal(load_checkpoint(tmp_path / "b")(tokens), expected)
        assert torch.equal(model(tokens).logits, expected)
    grown = tokens
    for _ in range(8):
        with torch.no_grad():
            grown = torch.cat((grown, decoder(grown)[:, -1:].argmax(-1)), 1)
    out = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(out, grown)
    beams = model.generate(tokens, max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=0)
    assert beams.shape == (1, 13)
    loss = model(tokens, labels=tokens).loss
    assert torch.isfinite(loss)


def test_hugging_face_generate_with_left_padding(tmp_path):
    model = SentinelForCausalLM.from_decoder(filled_decoder(unequal_spec()), Record())
    tokens = some_tokens(model.decoder.spec, batch=1, length=6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), tokens), 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], plain)


def test_output_that_is_not_ours_is_left_alone(tmp_path):
    decoder = filled_decoder(spec_of("gpt2"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        save_checkpoint(decoder, tmp_path / "file", None, Record())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        save_checkpoint(decoder, tmp_path / "folder", None, Record())
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        save_checkpoint(decoder, tmp_path / "file" / "below", None, Record())


def test_replacing_a_checkpoint_leaves_nothing_else(tmp_path):
    first, second = filled_decoder(spec_of("gpt2"), 0), filled_decoder(unequal_spec(), 1)
    save_checkpoint(first, tmp_path / "a", None, Record())
    with pytest.raises(InputError, match="--force"):
        save_checkpoint(second, tmp_path / "a", None, Record())
    assert load_checkpoint(tmp_path / "a").spec == first.spec
    save_checkpoint(second, tmp_path / "a", None, Record(), force=True)
    assert load_checkpoint(tmp_path / "a").spec == second.spec
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    decoder = filled_decoder(spec_of("gpt2"))
    save_checkpoint(decoder, tmp_path / "a", None, Record())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sentinel.formats.weight_files.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(filled_decoder(unequal_spec()), tmp_path / "a", None, Record(), force=True)
    assert load_checkpoint(tmp_path / "a").spec == decoder.spec
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_damaged_checkpoints_are_refused(tmp_path):
    save_checkpoint(filled_decoder(spec_of("gpt2")), tmp_path / "a", None, Record())
    weights, config = tmp_path / "a" / "model.safetensors", tmp_path / "a" / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged or truncated"):
            load_checkpoint(tmp_path / "a")
    weights.unlink()
    with pytest.raises(InputError, match="has no weights"):
        load_checkpoint(tmp_path / "a")
    weights.write_bytes(whole)
    config.write_text(text.replace('"n_embd": 48', '"n_embd": 64'))
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(tmp_path / "a")
    config.write_text(text[:50])
    with pytest.raises(InputError, match="not valid JSON"):
        load_checkpoint(tmp_path / "a")
    config.unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "a")
