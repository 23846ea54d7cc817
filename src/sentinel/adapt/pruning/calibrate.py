"""One streamed pass over text that keeps what the importance criteria need.

Per layer: the Gram matrices at the inputs of both output projections, gate gradients of heads and neurons (first order
and squared), and the entropy of attention. Memory does not grow with the text: 4 bytes x (K^2 + F^2) per layer for the
Gram matrices of K = n_head x head_dim and F = intermediate_size inputs, and the activations of one batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sentinel.adapt.pruning.gradients import LayerProbe, probe
from sentinel.adapt.pruning.gram_matrices import gram_of
from sentinel.adapt.pruning.plan import spec_digest
from sentinel.adapt.text.corpora import Windows
from sentinel.errors import InputError
from sentinel.files import write_file
from sentinel.models.decoder import Attention, Decoder, Rotary
from sentinel.models.positions import visible
from sentinel.models.spec import ModelSpec
from sentinel.progress import track

BATCH = 2
SAVE_EVERY_SECONDS = 60.0


@dataclass
class Calibration:
    """Sums over ``tokens`` calibration tokens, by name: ``attn_gram.3`` is the Gram matrix of layer 3's heads.

    Names: ``attn_gram`` [K, K], ``mlp_gram`` [F, F]; ``group_gradient``, ``group_fisher``, ``entropy`` [n_kv_head];
    ``neuron_gradient``, ``neuron_fisher`` [F]. Gradients are sums over windows of absolute values, Fisher sums over
    tokens of squares, entropies sums over windows of means (1 for uniform attention, 0 for a single position).
    """

    spec: ModelSpec
    tokens: int
    sums: dict[str, Tensor]
    fingerprints: tuple[str, ...]

    @classmethod
    def empty(cls, spec: ModelSpec, fingerprints: tuple[str, ...], device: torch.device) -> Calibration:
        sums: dict[str, Tensor] = {}
        for i, layer in enumerate(spec.layers):
            inputs, neurons = layer.n_head * layer.head_dim, layer.intermediate_size
            sums[f"attn_gram.{i}"] = torch.zeros(inputs, inputs, device=device)
            sums[f"mlp_gram.{i}"] = torch.zeros(neurons, neurons, device=device)
            for name in ("group_gradient", "group_fisher", "entropy"):
                sums[f"{name}.{i}"] = torch.zeros(layer.n_kv_head, device=device)
            for name in ("neuron_gradient", "neuron_fisher"):
                sums[f"{name}.{i}"] = torch.zeros(neurons, device=device)
        return cls(spec, 0, sums, fingerprints)

    def of_layer(self, name: str, layer: int) -> Tensor:
        """One statistic of one layer."""
        return self.sums[f"{name}.{layer}"]


def calibrate(decoder: Decoder, windows: Windows, statistics_file: Path | None = None) -> Calibration:
    """Statistics of ``decoder`` over the calibration windows.

    With ``statistics_file`` the sums are saved about once a minute and at the end, and a file of the same model and
    windows is taken up where it ended. The result does not depend on interruptions. Raises `InputError` for NaN, naming
    the layer, and for a statistics file of something else.
    """
    identity = _identity(decoder, windows)
    found = Calibration.empty(decoder.spec, windows.fingerprints, decoder.device)
    if statistics_file is not None and statistics_file.exists():
        found = _read(statistics_file, decoder, windows, identity)
    length = windows.tokens.shape[1]
    left = windows.tokens[found.tokens // length :]
    entropies = AttentionEntropy(decoder, length)
    saved = time.monotonic()
    batches = -(-len(left) // BATCH)
    parts = left.split(BATCH)[:batches]  # of nothing, split gives one part
    pairs = zip(parts, probe(decoder, left, labels="text", batch=BATCH) if batches else (), strict=True)
    for tokens, layers in track(pairs, "Calibrating", batches):
        for (index, half), layer in layers.items():
            _add(found, index, half, layer, len(tokens))
        for index, entropy in entropies.of(tokens).items():
            found.of_layer("entropy", index).add_(entropy * len(tokens))
        found.tokens += tokens.numel()
        if statistics_file is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
            _write(found, statistics_file, identity)
            saved = time.monotonic()
    if statistics_file is not None:
        _write(found, statistics_file, identity)
    return found


def _add(found: Calibration, index: int, half: str, layer: LayerProbe, windows: int) -> None:
    spec = found.spec.layers[index]
    effect = layer.inputs * layer.gradients  # of the gate of each input, per token
    if half == "attn":
        effect = effect.unflatten(1, (spec.n_kv_head, -1)).sum(2)
    kind = "group" if half == "attn" else "neuron"
    found.of_layer(f"{half}_gram", index).add_(gram_of(layer.inputs))
    found.of_layer(f"{kind}_gradient", index).add_(effect.unflatten(0, (windows, -1)).sum(1).abs().sum(0))
    found.of_layer(f"{kind}_fisher", index).add_(effect.square().sum(0))


class AttentionEntropy:
    """Entropy of each head's attention, over the logarithm of the positions that it may look at, in windows of
    ``length`` tokens."""

    def __init__(self, decoder: Decoder, length: int) -> None:
        self._decoder = decoder
        self._positions = torch.arange(length, device=decoder.device)[None]
        self._rotary = decoder.rotary(self._positions)
        self._most = torch.arange(1, length + 1, device=decoder.device).float().log().clamp(min=1e-9)

    @torch.no_grad()
    def of(self, tokens: Tensor) -> dict[int, Tensor]:
        """Means [n_kv_head] over windows ``tokens`` [B, length], by layer, for the layers that have heads."""
        found: dict[int, Tensor] = {}
        x = self._decoder.embedded(tokens.to(self._decoder.device), self._positions)
        for index, block in enumerate(self._decoder.blocks):
            if block.attn.active_groups:
                entropy = self._entropy(block.attn, block.attn_norm(x), self._rotary)
                found[index] = entropy.unflatten(1, (block.attn.active_groups, -1)).mean((0, 2))
            x = block(x, self._rotary, None, index, None)
        return found

    def _entropy(self, attention: Attention, x: Tensor, rotary: Rotary) -> Tensor:
        """Mean relative entropy [B, H] over positions with more than one thing to look at."""
        query, key = attention.queries_and_keys(x, rotary)
        scores = query @ key.transpose(2, 3) / math.sqrt(attention.layer.head_dim)
        length = scores.shape[-1]
        scores = scores.masked_fill(~visible(length, length, x.device), -math.inf)
        weights = scores.softmax(-1)
        entropy = -torch.special.xlogy(weights, weights).sum(-1)
        return (entropy / self._most)[..., 1:].mean(-1)


def _identity(decoder: Decoder, windows: Windows) -> str:
    digest = hashlib.sha256(spec_digest(decoder.spec).encode())
    digest.update(windows.tokens.cpu().numpy().tobytes())
    for name, tensor in decoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.flatten()[:: max(1, tensor.numel() // 64)].cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


def _write(found: Calibration, path: Path, identity: str) -> None:
    metadata = {"identity": identity, "tokens": str(found.tokens), "fingerprints": json.dumps(found.fingerprints)}
    with write_file(path) as temporary:
        save_file(found.sums, temporary, metadata=metadata)


def _read(path: Path, decoder: Decoder, windows: Windows, identity: str) -> Calibration:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            sums = {name: file.get_tensor(name).to(decoder.device) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a statistics file ({error}); remove it or name another one") from error
    if metadata.get("identity") != identity:
        raise InputError(f"{path} holds statistics of another model or text; remove it or name another one")
    return Calibration(decoder.spec, int(metadata["tokens"]), sums, windows.fingerprints)
