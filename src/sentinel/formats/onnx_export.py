# pyright: standard
"""Writes a decoder as a folder for onnxruntime: the graph with its weights, the tokenizer, and a script that runs it.

Weights are fp32, or in blocks of 32 with a scale each: int8, or int4 with an int8 embedding, which a tied LM head is too
(MatMulNBits, accuracy level 4: what it reads is rounded to int8). ``genai_config.json`` is for onnxruntime-genai, which
(0.18) takes the sizes of its cache from the graph, layer by layer, so that layers may differ or have no heads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sentinel.formats import run_onnx
from sentinel.formats.onnx_graph import NAMED, write_onnx
from sentinel.formats.onnx_nodes import Matrices
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

FORMS: dict[str, Matrices] = {"fp32": "fp32", "int8": "int8 blocks", "int4": "int4 blocks"}
GRAPH = "model.onnx"


def write_onnx_folder(decoder: Decoder, tokenizer: TextTokenizer | None, folder: Path, precision: str) -> None:
    """Write ``decoder`` to ``folder`` in that precision (fp32, int8, int4).

    Raises `InputError` for what the graph can't hold.
    """
    write_onnx(decoder, folder / GRAPH, FORMS[precision], NAMED)
    spec = decoder.spec
    ends = [] if tokenizer is None else list(tokenizer.eos_ids)
    config = {
        "model_type": spec.family,
        "precision": precision,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_seq_len,
        "eos_token_id": ends,
        "layers": [{"num_key_value_heads": y.n_kv_head, "head_dim": y.head_dim} for y in spec.layers],
    }
    _write_json(config, folder / "config.json")
    shutil.copyfile(run_onnx.__file__, folder / Path(run_onnx.__file__).name)
    if tokenizer is not None:
        tokenizer.copy_files(folder)
    if spec.n_head_total:
        _write_json(genai_config(spec, ends), folder / "genai_config.json")


def genai_config(spec: ModelSpec, ends: list[int]) -> dict[str, Any]:
    """What onnxruntime-genai is to know of the graph; its type ``decoder`` is any model of that kind."""
    largest = max(spec.layers, key=lambda layer: layer.n_kv_head)
    inputs = {
        "input_ids": NAMED.tokens,
        "attention_mask": "attention_mask",
        "past_key_names": NAMED.key.format(i="%d"),
        "past_value_names": NAMED.value.format(i="%d"),
    }
    outputs = {
        "logits": "logits",
        "present_key_names": NAMED.new_key.format(i="%d"),
        "present_value_names": NAMED.new_value.format(i="%d"),
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
        "head_size": largest.head_dim,
        "hidden_size": spec.n_embd,
        "inputs": inputs,
        "outputs": outputs,
        "num_attention_heads": max(y.n_head for y in spec.layers),
        "num_hidden_layers": spec.n_layer,
        "num_key_value_heads": largest.n_kv_head,
    }
    end = ends[0] if ends else 0
    model = {
        "bos_token_id": end,
        "context_length": spec.max_seq_len,
        "decoder": decoder,
        "eos_token_id": ends or [end],
        "pad_token_id": end,
        "type": "decoder",
        "vocab_size": spec.vocab_size,
    }
    search = {"do_sample": False, "max_length": spec.max_seq_len, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def _write_json(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
