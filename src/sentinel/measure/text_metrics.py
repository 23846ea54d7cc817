"""How varied sampled text is: repetition and distinct-n."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sentinel.adapt.text.corpora import Text
from sentinel.infer.engine import Engine
from sentinel.infer.generate import generate_tokens
from sentinel.infer.sampling import SamplingSettings
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track


@dataclass(frozen=True)
class Variety:
    """Shares over all sampled continuations.

    ``distinct_1`` and ``distinct_2``: different unigrams and bigrams over all of them (Li et al. 2016). ``repetition``:
    tokens that were among the 32 before them (Welleck et al. 2020 count the same over the whole prefix).
    """

    repetition: float
    distinct_1: float
    distinct_2: float


WINDOW = 32


def distinct(sequences: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over n-grams; 1 for text that never repeats one, 0 for no text."""
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(sequences: Sequence[Sequence[int]]) -> float:
    """Share of tokens that occur among the 32 tokens before them."""
    repeated = [token in s[max(0, i - WINDOW) : i] for s in sequences for i, token in enumerate(s)]
    return sum(repeated) / len(repeated) if repeated else 0.0


def sample_variety(
    engine: Engine,
    tokenizer: TextTokenizer,
    texts: Sequence[Text],
    *,
    prompts: int = 4,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
) -> Variety:
    """Sample continuations (temperature 1, seeded) of the beginnings of the first documents that hold tokens, and count.

    Prompts take half of the context at most, continuations what is left of it.
    """
    prompt_tokens = max(1, min(prompt_tokens, engine.spec.max_seq_len // 2))
    documents = (document for text in texts for document in text.documents)
    encoded = (tokenizer.encode(document.text)[:prompt_tokens] for document in documents)
    begun = list(itertools.islice((ids for ids in encoded if ids), prompts))
    room = engine.spec.max_seq_len - prompt_tokens
    count = min(new_tokens, room)
    steps = generate_tokens(engine, begun, count, SamplingSettings(temperature=1.0))
    columns = zip(*track(steps, "Sampling text", count), strict=True)
    rows = [[t for t in row if t is not None] for row in columns]
    return Variety(repetition(rows), distinct(rows, 1), distinct(rows, 2))
