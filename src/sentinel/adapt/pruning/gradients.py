"""One forward and backward pass that tells how much every head and neuron matters to the model's predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sentinel.adapt.integration import require_plain
from sentinel.adapt.pruning.residual_stream import (
    HALVES,
    Half,
    check_finite,
    half_of,
    joined,
    masks_of,
    positions_of,
    projection_inputs,
)
from sentinel.models.decoder import Decoder


@dataclass
class LayerProbe:
    """For one half layer and a batch of tokens: what its output projection reads [N, K], the gradient there [N, K]."""

    inputs: Tensor
    gradients: Tensor


Place = tuple[int, Half]


def probe(
    decoder: Decoder, windows: Tensor, *, labels: Literal["sampled", "text"] = "sampled", batch: int = 2, seed: int = 0
) -> Iterator[dict[Place, LayerProbe]]:
    """Yield, per ``batch`` of ``windows`` [windows, T], the `LayerProbe` of every (layer, half) that has inputs.

    Gradients are of the summed negative log-likelihood of the labels: the text's next tokens, or tokens sampled from the
    model with ``seed``, whose squared gradients are those of the true Fisher information (Kunstner et al. 2019).
    """
    require_plain(decoder, "calibration")
    generator = torch.Generator(decoder.device).manual_seed(seed)
    positions = positions_of(windows, decoder)
    rotary, masks = decoder.rotary(positions), masks_of(windows, decoder)
    for part in windows.split(batch):
        tokens = part.to(decoder.device)
        with torch.enable_grad():
            x = decoder.embedded(tokens, positions).detach().requires_grad_()
            read: dict[Place, Tensor] = {}
            for index, block in enumerate(decoder.blocks):
                entering, mask = x, masks.of(block.attn.layer.window)
                for half in HALVES:
                    source = entering if block.joints.parallel else x
                    normed = block.attn_input(x) if half == "attn" else block.mlp_input(source)
                    inputs = projection_inputs(block, half, normed, rotary, index, mask)
                    if inputs.shape[-1]:
                        read[index, half] = inputs
                    x = joined(block, half, x, half_of(block, half).project(inputs))
                    check_finite(x, index, half)
            loss = _loss(decoder.logits(x), tokens, labels, generator)
            found = torch.autograd.grad(loss, list(read.values()))
        yield {
            place: LayerProbe(inputs.detach().flatten(0, 1), gradient.flatten(0, 1))
            for (place, inputs), gradient in zip(read.items(), found, strict=True)
        }


def _loss(logits: Tensor, tokens: Tensor, labels: str, generator: torch.Generator) -> Tensor:
    if labels == "text":
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    with torch.no_grad():
        noise = torch.empty_like(logits).exponential_(generator=generator).log_()
        sampled = (logits - noise).argmax(dim=-1)  # Gumbel-max: a sample of the softmax
    return functional.cross_entropy(logits.flatten(0, 1), sampled.flatten(), reduction="sum")
