"""What calibration found, layer by layer, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sentinel.errors import InputError
from sentinel.files import write_file
from sentinel.models.spec import LayerSpec, ModelSpec


@dataclass(frozen=True)
class LayerStatistics:
    """Sums over calibration tokens of one layer of G head groups, which grow in place.

    With K = n_head x head_dim and F = intermediate_size: the Gram matrices of what the output projections read,
    ``attn_gram`` [K, K] and ``mlp_gram`` [F, F]; of the gates of head groups [G] and neurons [F] the sums over windows of
    absolute gradients, ``group_gradient`` and ``neuron_gradient``, and over tokens of squared ones, ``group_fisher`` and
    ``neuron_fisher``; ``entropy`` [G] is the sum over windows of the mean entropy of attention (1 for uniform attention, 0
    for a single position).
    """

    attn_gram: Tensor
    mlp_gram: Tensor
    group_gradient: Tensor
    group_fisher: Tensor
    neuron_gradient: Tensor
    neuron_fisher: Tensor
    entropy: Tensor

    @classmethod
    def empty(cls, layer: LayerSpec, device: torch.device) -> LayerStatistics:
        """Sums over nothing."""
        return cls(**{name: torch.zeros(shape, device=device) for name, shape in _shapes(layer).items()})


def _shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    inputs, groups, neurons = layer.n_head * layer.head_dim, layer.n_kv_head, layer.intermediate_size
    return {
        "attn_gram": (inputs, inputs),
        "mlp_gram": (neurons, neurons),
        "group_gradient": (groups,),
        "group_fisher": (groups,),
        "neuron_gradient": (neurons,),
        "neuron_fisher": (neurons,),
        "entropy": (groups,),
    }


@dataclass
class Calibration:
    """Statistics of every layer over ``tokens`` calibration tokens, of the documents with those ``fingerprints``."""

    spec: ModelSpec
    tokens: int
    layers: tuple[LayerStatistics, ...]
    fingerprints: tuple[str, ...]

    @classmethod
    def empty(cls, spec: ModelSpec, fingerprints: tuple[str, ...], device: torch.device) -> Calibration:
        """Statistics of nothing yet."""
        return cls(spec, 0, tuple(LayerStatistics.empty(layer, device) for layer in spec.layers), fingerprints)

    def tensors(self) -> dict[str, Tensor]:
        """All sums by the names of the statistics file: ``attn_gram.3`` is that of layer 3."""
        return {
            f"{field.name}.{index}": getattr(layer, field.name)
            for index, layer in enumerate(self.layers)
            for field in dataclasses.fields(layer)
        }


def write_statistics(found: Calibration, path: Path, identity: str) -> None:
    """Write statistics of the model and windows that ``identity`` names, whole or not at all."""
    metadata = {"identity": identity, "tokens": str(found.tokens), "fingerprints": json.dumps(found.fingerprints)}
    with write_file(path) as temporary:
        save_file(found.tensors(), temporary, metadata=metadata)


def read_statistics(path: Path, empty: Calibration, identities: Sequence[str]) -> Calibration:
    """Inverse of `write_statistics` by any of ``identities``, for the model and documents of ``empty`` statistics, into
    their tensors.

    Raises `InputError` for a file that is none, lacks a tensor, or holds statistics of another model or text.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a statistics file ({error}); remove it or name another one") from error
    if metadata.get("identity") not in identities:
        raise InputError(f"{path} holds statistics of another model or text; remove it or name another one")
    for name, tensor in empty.tensors().items():
        if name not in read or read[name].shape != tensor.shape:
            raise InputError(f"{path} has no statistics {name} of this model's shape; remove it or name another one")
        tensor.copy_(read[name])
    return dataclasses.replace(empty, tokens=int(metadata["tokens"]))
