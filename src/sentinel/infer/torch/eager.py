"""Levels 0 and 1: the decoder run eagerly by PyTorch, on any device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from sentinel.errors import InputError
from sentinel.infer.engine import Logits, check_level, check_prompts
from sentinel.models.decoder import Decoder
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceDecoder

if hasattr(os, "register_at_fork"):  # OpenMP's threads do not survive a fork, and a child waits for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class TorchEngine:
    """Runs a `Decoder` (level 1) or its per-head reference (level 0). Batches of unequal prompts are padded left."""

    def __init__(self, decoder: Decoder, level: int) -> None:
        self.level = check_level(level).number
        self.precision = "fp32"
        self.kv_bytes = decoder.embed.weight.element_size()
        self.name = f"level {level}"
        self.decoder = ReferenceDecoder(decoder.narrowed()) if level == 0 else decoder
        self.decoder.eval()
        self.spec = decoder.spec
        self._cache: KVCache | None = None
        self._mask: torch.Tensor | None = None

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights read to decode one token at batch 1."""
        return self.spec.weight_bytes_per_token(4.0)

    def weight_bytes(self) -> int:
        """Bytes of all weights in memory, what tensors share counted once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.decoder.parameters()}
        return sum(storages.values())

    def kv_cache_bytes(self) -> int:
        """Bytes that the KV cache has taken."""
        return 0 if self._cache is None else self._cache.nbytes

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Logits:
        """Logits [B, V] after each prompt; room for ``max_new_tokens`` more is allocated."""
        check_prompts(self.spec, prompts, max_new_tokens)
        longest = max(len(prompt) for prompt in prompts)
        device = self.decoder.device
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device="cpu")
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device="cpu")
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt, device="cpu")
            mask[row, longest - len(prompt) :] = True
        self._cache = self._room(len(prompts), longest + max_new_tokens)
        self._mask = None if bool(mask.all()) else mask.to(device)
        return self._logits(tokens.to(device))

    @torch.inference_mode()
    def decode_one_token(self, tokens: Sequence[int]) -> Logits:
        """Logits [B, V] after one more token per sequence."""
        if self._cache is None:
            raise InputError("decode_one_token needs a prefill first")
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        return self._logits(torch.tensor(tokens, device=self.decoder.device)[:, None])

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int]) -> Logits:
        """Logits [T, V] after each of several more tokens of a single sequence, in one pass."""
        if self._cache is None or self._cache.batch != 1:
            raise InputError("verify needs a prefill of one prompt first")
        logits = self.decoder(torch.tensor(tokens, device=self.decoder.device)[None], self._cache)
        return np.asarray(logits[0].float().cpu().numpy())

    def rollback(self, n_token: int) -> None:
        """Take the last tokens of all sequences away again."""
        if self._cache is None or n_token > self._cache.get_seq_length():
            raise InputError(f"{n_token} tokens can't be taken away, there are not as many")
        self._cache.lengths = [length - n_token for length in self._cache.lengths]

    def _logits(self, tokens: torch.Tensor) -> Logits:
        logits = self.decoder(tokens, self._cache, self._mask, last_only=True)
        return np.asarray(logits[:, -1].float().cpu().numpy())

    def _room(self, batch: int, length: int) -> KVCache:
        """An empty cache with room for ``length`` positions; the last one is used again when it is large enough."""
        old = self._cache
        if old is not None and old.batch == batch and old.max_len >= length:
            old.reset()
            return old
        spec, dtype = self.decoder.cache_spec, self.decoder.embed.weight.dtype
        return KVCache(spec, batch, length, dtype=dtype, device=self.decoder.device)
