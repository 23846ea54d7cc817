"""Writes a decoder as a folder that transformers loads without this package.

Where the family's own class can hold it, the folder is that class's: ``config.json``, safetensors and tokenizer. A bias
that the class has together with one that the model has is written as zeros.

Every other model goes with `modeling_sentinel`, one self-contained file (``trust_remote_code=True``), whose config lists
what single layers have in transformers' ``per_layer_config``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sentinel.errors import InputError
from sentinel.formats.checkpoint import write_tensors
from sentinel.formats.hugging_face import modeling_sentinel
from sentinel.formats.hugging_face.model import SUPPORTS as OF_FAMILIES
from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.formats.weight_files import writing_safetensors
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import DTYPES
from sentinel.models.families import family_of
from sentinel.models.features import (
    ATTENTION_VARIANTS,
    BLOCK_VARIANTS,
    END_VARIANTS,
    MIXED_MLPS,
    PLAIN,
    ROPE_SCALINGS,
    ROTARY_VARIANTS,
    SINGLE_BIASES,
    UNEQUAL,
    require_supported,
)
from sentinel.models.layer_spec import LayerSpec, RopeSpec
from sentinel.models.rotary import frequencies
from sentinel.models.spec import ModelSpec
from sentinel.models.tensors import tensors_of, with_scales_folded
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import say

# Of `modeling_sentinel`; what the family's own class lacks goes there.
SUPPORTS = (
    PLAIN
    | ROPE_SCALINGS
    | UNEQUAL
    | MIXED_MLPS
    | SINGLE_BIASES
    | ROTARY_VARIANTS
    | ATTENTION_VARIANTS
    | BLOCK_VARIANTS
    | END_VARIANTS
)
MODELING = Path(modeling_sentinel.__file__)
CONFIG, CLASS = "SentinelDecoderConfig", "SentinelDecoderForCausalLM"
BIASES = (("attention", "qkv_bias"), ("attention", "out_bias"), ("mlp", "up_bias"), ("mlp", "down_bias"))


def write_hugging_face(decoder: Decoder, tokenizer: TextTokenizer | None, folder: Path, precision: str) -> None:
    """Write ``decoder`` to ``folder`` with its weights in that precision (fp32, bf16, fp16).

    Raises `InputError` for features that neither the family's class nor `modeling_sentinel` has.
    """
    require_supported(decoder.spec, SUPPORTS, "a folder for Hugging Face")
    dtype = DTYPES[precision]
    ids = _special_ids(tokenizer)
    try:
        theirs = family_model(decoder, dtype)
    except InputError as error:
        say(f"it goes with {MODELING.name} (trust_remote_code=True): {error}")
        _write_with_code(decoder, folder, dtype, ids)
    else:
        model = cast(Any, theirs)  # these methods of transformers have no types
        model.config.update(ids)
        model.generation_config.update(**ids)
        with writing_safetensors():
            model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.copy_files(folder)
    if not (folder / "generation_config.json").exists():
        _write_json(ids, folder / "generation_config.json")


def family_model(decoder: Decoder, dtype: torch.dtype) -> PreTrainedModel:
    """The family's own Hugging Face model in ``dtype``; `InputError` where its class can't hold the decoder."""
    refusal: InputError | None = None
    for candidate in _with_more_biases(decoder.spec):
        family = family_of(candidate.family)
        try:
            require_supported(candidate, OF_FAMILIES, "Hugging Face's own class")
            if family.spec_from_config(family.config_from_spec(candidate)) != candidate:
                raise InputError(f"Hugging Face's class {family.architecture} is another model with these features")
            return cast(Any, to_hugging_face(_with_zero_biases(decoder, candidate))).to(dtype)
        except InputError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _with_more_biases(spec: ModelSpec) -> Iterator[ModelSpec]:
    """The specification with the biases that any layer has in every layer; then with others too, which would be zeros."""
    has = [any(getattr(getattr(layer, half), name) for layer in spec.layers) for half, name in BIASES]
    choices = itertools.product(*((True,) if there else (False, True) for there in has))
    for flags in sorted(choices, key=sum):
        chosen = dict(zip(BIASES, flags, strict=True))
        attention, mlp = ({n: f for (h, n), f in chosen.items() if h == half} for half in ("attention", "mlp"))
        layers = tuple(
            LayerSpec(dataclasses.replace(layer.attention, **attention), dataclasses.replace(layer.mlp, **mlp))
            for layer in spec.layers
        )
        yield dataclasses.replace(spec, layers=layers)


def _with_zero_biases(decoder: Decoder, spec: ModelSpec) -> Decoder:
    """The same decoder as one of ``spec``, which may have more biases."""
    if spec == decoder.spec:
        return decoder
    state = decoder.state_dict()
    for tensor in tensors_of(spec):
        if tensor.name not in state:
            state[tensor.name] = torch.zeros(tensor.shape, dtype=decoder.dtype)
    wider = Decoder.empty(spec)
    wider.load_state_dict(state, assign=True)
    return wider.eval()


def _special_ids(tokenizer: TextTokenizer | None) -> dict[str, Any]:
    if tokenizer is None or not tokenizer.eos_ids:
        return {}
    ids = list(tokenizer.eos_ids)
    return {"eos_token_id": ids[0] if len(ids) == 1 else ids}


def _write_with_code(decoder: Decoder, folder: Path, dtype: torch.dtype, ids: dict[str, Any]) -> None:
    state = {name: tensor.detach().cpu().float() for name, tensor in decoder.state_dict().items()}
    folded = with_scales_folded(state, decoder.spec)
    stored = {name: _stored(name, folded[name], dtype) for name in sorted(folded) if not _is_empty(name, decoder.spec)}
    write_tensors(stored, folder / "model.safetensors", {"format": "pt"})
    shutil.copyfile(MODELING, folder / MODELING.name)
    config = {
        "architectures": [CLASS],
        "auto_map": {"AutoConfig": f"{MODELING.stem}.{CONFIG}", "AutoModelForCausalLM": f"{MODELING.stem}.{CLASS}"},
        "model_type": modeling_sentinel.SentinelDecoderConfig.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        **ids,
        **decoder_config(decoder.spec),
        "record": decoder.record.to_dict(),
    }
    _write_json(config, folder / "config.json")


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms stay in fp32: Gemma's multiply by 1 + what was trained, which a half would round."""
    is_norm = any(f"{norm}." in name for norm in modeling_sentinel.NORMS)
    return (tensor if is_norm else tensor.to(dtype)).contiguous()


def _is_empty(name: str, spec: ModelSpec) -> bool:
    """True for a tensor of a half without heads or neurons, but for the bias that it adds."""
    parts = name.split(".")
    if parts[0] != "layers" or name.endswith(("out_proj.bias", "down_proj.bias")):
        return False
    layer = spec.layers[int(parts[1])]
    return (parts[2] == "attn" and not layer.n_head) or (parts[2] == "mlp" and not layer.intermediate_size)


def decoder_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields of `modeling_sentinel.SentinelDecoderConfig` for a model of that specification."""
    attended = (layer.attention for layer in spec.layers if layer.n_head)
    ropes = sorted({(y.rope, y.head_dim) for y in attended if y.rope is not None}, key=str)
    layers = [_layer_fields(layer, ropes) for layer in spec.layers]
    common = {name: _most_common(name, layers) for name in modeling_sentinel.OF_LAYERS}
    windows = [layer.attention.window for layer in spec.layers]
    types = ["full_attention" if window is None else "sliding_attention" for window in windows]
    per_layer = {
        str(index).zfill(len(str(spec.n_layer - 1))): own
        for index, layer in enumerate(layers)
        if (own := {name: value for name, value in layer.items() if name == "skip" or value != common[name]})
    }
    return {
        "family": spec.family,  # this and the settings of rotary tables are for `unequal_folder` alone
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.n_embd,
        "num_hidden_layers": spec.n_layer,
        "max_position_embeddings": spec.max_seq_len,
        "tie_word_embeddings": spec.tied_head,
        "norm": spec.norm.kind,
        "norm_eps": spec.norm.eps,
        "learned_positions": spec.learned_positions,
        **{name: getattr(spec.block, name) for name in ("pre_norm", "post_norm", "parallel", "shared_norm")},
        "embedding_scale": spec.embed_scale,
        "logit_soft_cap": spec.logit_soft_cap,
        "lm_head_bias": spec.head_bias,
        **common,
        "rotary_tables": [_table(rope, dim) for rope, dim in ropes],
        **({} if set(windows) == {None} else {"layer_types": types}),
        "per_layer_config": per_layer,
    }


def _layer_fields(layer: LayerSpec, ropes: list[tuple[RopeSpec, int]]) -> dict[str, Any]:
    """What a layer has; nothing of a half that it skips, but for its bias."""
    attention, mlp = layer.attention, layer.mlp
    found: dict[str, Any] = {"attention_out_bias": attention.out_bias, "mlp_down_bias": mlp.down_bias}
    if attention.n_head:
        found |= {
            "num_attention_heads": attention.n_head,
            "num_key_value_heads": attention.n_kv_head,
            "head_dim": attention.head_dim,
            "rotary": None if attention.rope is None else ropes.index((attention.rope, attention.head_dim)),
            "qk_norm": attention.qk_norm,
            "attention_scale": attention.scale,
            "attention_soft_cap": attention.soft_cap,
            "qkv_bias": attention.qkv_bias,
        }
    if attention.window is not None:
        found["sliding_window"] = attention.window
    if mlp.intermediate_size:
        found |= {
            "intermediate_size": mlp.intermediate_size,
            "hidden_act": mlp.activation,
            "gated_mlp": mlp.gated,
            "mlp_up_bias": mlp.up_bias,
        }
    skipped = ["attention"] * (not attention.n_head) + ["mlp"] * (not mlp.intermediate_size)
    return found | ({"skip": skipped} if skipped else {})


def _most_common(name: str, layers: list[dict[str, Any]]) -> Any:
    counts = Counter(layer[name] for layer in layers if name in layer)
    return counts.most_common(1)[0][0] if counts else modeling_sentinel.OF_LAYERS[name]


def _table(rope: RopeSpec, head_dim: int) -> dict[str, Any]:
    """Frequencies as numbers: a float64 in JSON holds those of fp32 exactly."""
    table: dict[str, Any] = {"frequencies": [float(f) for f in frequencies(rope, head_dim)]}
    table["settings"] = {f.name: v for f in dataclasses.fields(rope) if (v := getattr(rope, f.name)) != f.default}
    if rope.attention_factor != 1.0:
        table["attention_factor"] = rope.attention_factor
    if rope.type == "longrope":
        table["original_max_position_embeddings"] = rope.original_max_seq_len
        beyond = frequencies(rope, head_dim, rope.original_max_seq_len + 1)
        table["long_frequencies"] = [float(f) for f in beyond]
    return table


def _write_json(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
