"""Tells models apart by their weights, wherever they are stored and whatever they are called."""

from __future__ import annotations

import hashlib

import torch

from sentinel.models.decoder import Decoder


def weights_fingerprint(decoder: Decoder) -> str:
    """The first 16 hex digits of the SHA-256 of every tensor's name, shape, format and bytes, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
