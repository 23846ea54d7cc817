# pyright: standard
"""Continues texts greedily with the ONNX graph in this folder; it needs numpy, onnxruntime and tokenizers alone.

    python run_onnx.py "Once upon a time" "Another text"

Rows of unequal length are padded at their end: a row has as many positions as its attention mask has ones, and its next
token takes the place of its padding in the cache. Letters: B rows, T new tokens, S cached and new positions, G key/value
heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class OnnxDecoder:
    """The graph in ``folder`` with its cache; ``threads`` 0 leaves their number to onnxruntime."""

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(Path(folder) / "model.onnx")
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._cached = [value for value in self._session.get_inputs() if value.name.startswith("past_key_values.")]
        self._cache: dict[str, Any] = {}
        self._lengths: Any = None

    def start(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Logits [B, T, V] of ``prompts``, with which a new cache begins; those of a row end with its own length."""
        self._lengths = np.array([len(prompt) for prompt in prompts])
        tokens = np.zeros((len(prompts), self._lengths.max()), np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        sizes = ((value.name, value.shape[1], value.shape[3]) for value in self._cached)
        self._cache = {name: np.zeros((len(prompts), heads, 0, dim), np.float32) for name, heads, dim in sizes}
        return self._run(tokens, tokens.shape[1])

    def step(self, tokens: Sequence[int]) -> Any:
        """Logits [B, V] after one more token per row."""
        self._lengths = self._lengths + 1
        return self._run(np.array(tokens, np.int64)[:, None], self._lengths.max())[:, 0]

    def _run(self, tokens: Any, total: int) -> Any:
        mask = (np.arange(total) < self._lengths[:, None]).astype(np.int64)
        names = ["logits", *(name.replace("past_key_values", "present") for name in self._cache)]
        found = self._session.run(names, {"input_ids": tokens, "attention_mask": mask, **self._cache})
        self._cache = dict(zip(self._cache, found[1:], strict=True))
        return found[0]

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """``new_tokens`` greedy tokens for each of the prompts."""
        logits = self.start(prompts)
        made = [logits[np.arange(len(prompts)), self._lengths - 1].argmax(-1)]
        while len(made) < new_tokens:
            made.append(self.step(made[-1]).argmax(-1))
        return np.stack(made, 1).tolist()


def main(texts: Sequence[str], new_tokens: int = 64) -> None:
    """Print every text with what follows it."""
    from tokenizers import Tokenizer

    folder = Path(__file__).parent
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in texts]
    for text, row in zip(texts, OnnxDecoder(folder).generate(prompts, new_tokens), strict=True):
        ends = [row.index(end) for end in config["eos_token_id"] if end in row]
        print(text + tokenizer.decode(row[: min(ends, default=len(row))]))


if __name__ == "__main__":
    main(sys.argv[1:] or ["Once upon a time"])
