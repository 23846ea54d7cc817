"""A short name of a model's shape, by which plans and statistics know the model that they are of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec

_OF_ROPE = ("theta", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")  # in version 1


def spec_digest(spec: ModelSpec) -> str:
    """The name of a shape."""
    return _digest(spec.to_json())


def digests(spec: ModelSpec) -> tuple[str, ...]:
    """All names of a shape: its `spec_digest`, and the one in files from when specifications had version 1, if it could
    be told then."""
    earlier = _version_1(spec)
    return (spec_digest(spec), *(() if earlier is None else (_digest(json.dumps(earlier, indent=2)),)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version_1(spec: ModelSpec) -> dict[str, Any] | None:
    """What version 1 of specifications wrote, where features stood beside the layers; None for what it did not know."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    rope = None if attention.rope is None else dataclasses.asdict(attention.rope)
    sizes = ("n_head", "n_kv_head", "head_dim", "intermediate_size")
    written = {
        "spec_version": 1,
        **{name: getattr(spec, name) for name in ("family", "vocab_size", "n_embd", "max_seq_len")},
        "layers": [{name: getattr(layer, name) for name in sizes} for layer in spec.layers],
        "norm": spec.norm.kind,
        "norm_eps": spec.norm.eps,
        "positions": "rope" if rope else "learned",
        "rope": rope and {name: rope[name] for name in _OF_ROPE},
        "activation": mlp.activation,
        "gated_mlp": mlp.gated,
        "qkv_bias": attention.qkv_bias,
        "out_bias": attention.out_bias,
        "up_bias": mlp.up_bias,
        "down_bias": mlp.down_bias,
        "tied_head": spec.tied_head,
    }
    try:
        return written if ModelSpec.from_dict(written) == spec else None
    except InputError:  # sizes or features that no version allows together in this way
        return None
