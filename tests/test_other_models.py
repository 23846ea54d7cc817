"""Models that are no family here are refused by what they are; a multimodal model gives its text part."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from family_configs import TINY
from helpers import largest_difference, some_tokens
from transformers import AutoConfig, AutoModelForImageTextToText

from sentinel import progress
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint
from sentinel.formats.gguf.reader import GGUFFile
from sentinel.formats.sources import load
from sentinel.models.families import family_of_gguf, spec_of
from sentinel.models.families.others import HOLDERS

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"image_size": 28, "patch_size": 14}


def config_of(model_type: str) -> dict[str, Any]:
    """The config of Hugging Face's own class, as it is written to ``config.json``."""
    return AutoConfig.for_model(model_type).to_dict()


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        *((name, "a mixture of experts") for name in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3")),
        *((name, "a mixture of experts") for name in ("gpt_oss", "phimoe", "granitemoe", "dbrx", "jetmoe")),
        *((name, "a state-space") for name in ("mamba", "mamba2", "rwkv", "xlstm", "bamba", "zamba2", "falcon_h1")),
        *((name, "a state-space") for name in ("recurrent_gemma", "lfm2", "falcon_mamba", "nemotron_h")),
        *((name, "an encoder-decoder") for name in ("t5", "bart", "mbart", "marian", "pegasus", "whisper")),
        *((name, "an encoder, which") for name in ("bert", "roberta", "electra", "distilbert")),
        *((name, "a multimodal model") for name in ("qwen2_vl", "mllama", "paligemma", "blip-2", "qwen2_audio")),
    ],
)
def test_what_is_no_family_is_refused_by_its_kind(model_type, kind):
    with pytest.raises(InputError, match=f"'{model_type}' is not supported: it is {kind}.*the supported families are"):
        spec_of(config_of(model_type))


def test_a_dense_family_that_is_not_here_is_said_to_be_none_of_these():
    with pytest.raises(InputError, match=r"^model family 'bloom' is not supported; the supported families are"):
        spec_of(config_of("bloom"))


@pytest.mark.parametrize(
    ("architecture", "fields", "kind"),
    [
        ("llama", {"expert_count": 8}, "a mixture of experts"),
        ("qwen2moe", {"expert_count": 60}, "a mixture of experts"),
        ("mamba", {"ssm.conv_kernel": 4}, "a state-space"),
        ("t5", {"decoder_start_token_id": 0}, "an encoder-decoder"),
        ("clip", {}, "a multimodal model"),
    ],
)
def test_gguf_files_of_other_kinds_are_refused_likewise(architecture, fields, kind):
    with pytest.raises(InputError, match=rf"m.gguf \(GGUF architecture '{architecture}'\) is {kind}"):
        family_of_gguf(architecture, fields, "m.gguf")
    assert family_of_gguf("llama", {"expert_count": 0}, "m.gguf")[0].model_type == "llama"


def test_a_file_that_holds_experts_is_refused_when_it_is_opened(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_expert_count(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="a mixture of experts"):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", sorted(HOLDERS))
def test_the_text_part_of_a_multimodal_model_is_its_logits_on_text(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress.console, "quiet", False)
    base = AutoConfig.for_model(name)
    text = {"model_type": base.text_config.model_type, **TINY, "head_dim": 8, "pad_token_id": 0, "sliding_window": None}
    vision = {"model_type": base.vision_config.model_type, **VISION}
    # sizes of pictures that InternVL has as pairs
    vision |= {key: [size, size] if name == "internvl" else size for key, size in IMAGES.items()}
    more = {"sliding_window": 6} if name == "gemma3" else {}
    config = AutoConfig.for_model(name, text_config={**text, **more}, vision_config=vision)
    torch.manual_seed(0)
    theirs = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.1, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert f"a multimodal model ({name})" in capsys.readouterr().err
    assert ours.spec.family == base.text_config.model_type
    tokens = some_tokens(ours.spec)
    with torch.no_grad():
        assert largest_difference(ours(tokens), theirs(tokens).logits) < 1e-5


def test_a_text_part_that_is_no_family_is_refused(tmp_path):
    config = {"model_type": "llava", "text_config": {"model_type": "mixtral", "num_local_experts": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'mixtral' is not supported: it is a mixture of experts"):
        load(str(tmp_path))
