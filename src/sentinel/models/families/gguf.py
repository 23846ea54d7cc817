"""What llama.cpp's converter (``convert_hf_to_gguf.py``) makes of a family: names, fields and the order of rows.

Read and written by ``formats/gguf``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.models.families.weights import fuse_qkv, halves_of_pairs, pairs_of_halves, split_qkv
from sentinel.models.spec import LayerSpec, ModelSpec

UNEQUAL_LAYERS = "deci"  # the architecture whose layers may differ; it is of no family

Change = Callable[[Tensor, LayerSpec], Tensor]


@dataclass(frozen=True)
class Conversion:
    """How a tensor of a layer becomes that of the file (``write``), and back (``read``)."""

    read: Change
    write: Change


# What a field that nobody asked for may hold without changing what the model computes.
HARMLESS: dict[str, Any] = {
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window": 0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
}
NOTES = ("rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout", "vocab_size")


class GGUFFields:
    """The fields of a file that belong to its architecture; `done` refuses by name what nobody asked for.

    ``values`` are plain ones, by names without the architecture; ``tensors`` are the names of all tensors.
    """

    def __init__(self, path: object, architecture: str, values: Mapping[str, Any], tensors: Collection[str]) -> None:
        self.path, self.architecture, self.tensors = path, architecture, tensors
        self._values = values
        self._asked: set[str] = set(NOTES)

    def refuse(self, name: str, said: str) -> InputError:
        return InputError(f"{self.path}: GGUF field '{self.architecture}.{name}' {said}")

    def get(self, name: str, default: Any = None) -> Any:
        """Any value; a field without a default must be there."""
        self._asked.add(name)
        value = self._values.get(name, default)
        if value is None:
            raise self.refuse(name, "is missing")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(name, f"must be a number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, not {value!r}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A size of all layers; a list of one per layer must hold a single value."""
        value = self.get(name, default)
        values = set(cast("list[Any]", value) if isinstance(value, list) else [value])
        if len(values) != 1:
            raise self.refuse(name, "differs between layers, which is not supported")
        count = values.pop()
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise self.refuse(name, f"must be a whole number of at least 1, not {count!r}")
        return count

    def counts(self, name: str, layers: int) -> list[int]:
        """A size of each layer, which may be 0; a single value is that of all."""
        value = self.get(name)
        found = cast("list[Any]", value) if isinstance(value, list) else [value] * layers
        if len(found) != layers:
            raise self.refuse(name, f"has {len(found)} entries for {layers} layers")
        for count in found:
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise self.refuse(name, f"must hold whole numbers of at least 0, not {count!r}")
        return found

    def window(self, default: int | None = None) -> int | None:
        """The attention window; 0 is none."""
        name = "attention.sliding_window"
        if self._values.get(name, default) in (0, None):
            self._asked.add(name)
            return None
        return self.count(name, default)

    def layer_types(self, every: int) -> list[str]:
        """Hugging Face's names of layers with a window, all but each ``every``-th where the file does not tell."""
        layers, value = self.count("block_count"), self.get("attention.sliding_window_pattern", every)
        if isinstance(value, list):
            pattern = cast("list[Any]", value)
        else:
            every = self.count("attention.sliding_window_pattern", every)
            pattern = [(layer + 1) % every != 0 for layer in range(layers)]
        if len(pattern) != layers:
            raise self.refuse("attention.sliding_window_pattern", f"has {len(pattern)} entries for {layers} layers")
        return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]

    def only(self, name: str, supported: Any) -> None:
        """A field of which a single value is supported, which it need not hold."""
        if self.get(name, supported) != supported:
            raise self.refuse(name, f"must be {supported!r} here, not {self._values[name]!r}")

    def done(self) -> None:
        """Refuse what nobody asked for, unless it has no effect."""
        for name, value in self._values.items():
            if name not in self._asked and (name not in HARMLESS or value != HARMLESS[name]):
                raise InputError(f"{self.path}: GGUF field '{self.architecture}.{name}' is not supported")


# Fields of a Hugging Face config by those of a file.
SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}


def nothing_more(_: GGUFFields, __: dict[str, Any]) -> dict[str, Any]:
    """No fields of the family's own."""
    return {}


def nothing_of_its_own(_: ModelSpec) -> dict[str, Any]:
    """No fields of the family's own."""
    return {}


# Kinds of projections.
QKV = ("attn_q", "attn_k", "attn_v", "attn_qkv")
OUTPUT, NEURONS, DOWN = ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",)
EVERY_PROJECTION = (*QKV, *OUTPUT, *NEURONS, *DOWN)


@dataclass(frozen=True)
class GGUFLayout:
    """How the files of one architecture hold a family.

    family: its ``model_type``; a family that took over another's layout has no files of its own. tensors: Hugging Face's
    modules by llama.cpp's names, in layers without "blk.N.". sizes: fields of the config by the file's. eps: the file's
    field of the norms' eps and the config's. biases: fields of the config that say whether some projections have biases;
    where one of them has, those without get zeros. rotary: "whole" heads are turned, or a "part" of each, or there are
    none. more: fields of the config that the family has of its own, given those found so far, over which they win.
    own: the inverse of that, fields of the file. conversions: what the converter does to tensors.

    What llama.cpp makes of the architecture (``src/models`` there): bias_kinds are the projections whose biases it reads,
    those in layers without "blk.N."; needs are tensors without which it loads no file; own_head: whether the LM head may
    be another tensor than the embedding. square: the heads of a layer are as wide as the model.
    """

    architecture: str
    family: str
    tensors: Mapping[str, str]
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    eps: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    rotary: str | None = "whole"
    more: Callable[[GGUFFields, dict[str, Any]], dict[str, Any]] = nothing_more
    own: Callable[[ModelSpec], dict[str, Any]] = nothing_of_its_own
    conversions: Mapping[str, Conversion] = field(default_factory=dict[str, Conversion])
    bias_kinds: Collection[str] = QKV
    needs: Collection[str] = ()
    own_head: bool = True
    square: bool = False


def in_layers(layer: str, **modules: str) -> dict[str, str]:
    """Names of modules of the layer ``layer``."""
    return {kind: f"{layer}.{module}" for kind, module in modules.items()}


def _by_head(rows: Tensor, layer: LayerSpec) -> Tensor:
    sizes = [heads * layer.head_dim for heads in (layer.n_head, layer.n_kv_head, layer.n_kv_head)]
    query, key, value = torch.split(rows, sizes)
    return fuse_qkv(query, key, value, layer)


def _turned(weight: Tensor, _: LayerSpec) -> Tensor:
    return weight.T.contiguous() if weight.dim() > 1 else weight


# Queries or keys [heads * D, ...] whose two halves are interleaved in the file.
PAIRS = Conversion(
    lambda rows, layer: halves_of_pairs(rows, layer.head_dim, layer.head_dim // 2),
    lambda rows, layer: pairs_of_halves(rows, layer.head_dim, layer.head_dim // 2),
)
# The weight of a norm that the family stores less 1.
LESS_ONE = Conversion(lambda weight, _: weight - 1, lambda weight, _: weight + 1)
# A weight that the family stores as [in, out]; a bias as it is.
IN_OUT = Conversion(_turned, _turned)
# Queries, keys and values of a head one after the other; in the file all queries come first.
BY_HEAD = Conversion(_by_head, lambda rows, layer: torch.cat(split_qkv(rows, layer)))
