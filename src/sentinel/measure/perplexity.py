"""Perplexity, bits per byte, and agreement with the unpruned model, over strided windows of a text.

Every token is predicted once. Windows overlap by ``context - stride`` tokens, so that a predicted token has at least
that many before it (but for the first window of a text). Sources: Hugging Face, "Perplexity of fixed-length models";
bits per byte as in The Pile (Gao et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sentinel.adapt.corpora import Text
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track

CHARACTERS_PER_TOKEN = 16  # more than any text needs; spares encoding what is cut off anyway


class Scorer(Protocol):
    """An engine that gives logits [T, V] at every position of one text."""

    spec: ModelSpec

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Passage:
    """A window of tokens [T] of which the last ``scored`` are predicted."""

    tokens: Tensor
    scored: int


@dataclass(frozen=True)
class Quality:
    """Quality over one text. ``perplexity_stderr`` takes windows as the independent samples.

    ``kl`` (nats a token) and ``top1_agreement`` compare with a teacher, and are None without one.
    """

    text: str
    tokens: int
    context: int
    stride: int
    nll: float
    perplexity: float
    perplexity_stderr: float
    bits_per_byte: float
    kl: float | None
    top1_agreement: float | None


def passages(
    texts: Sequence[Text], tokenizer: TextTokenizer, context: int, stride: int, max_tokens: int | None
) -> tuple[list[Passage], int]:
    """Windows over the documents, longest documents cut to a fair share of ``max_tokens``; and the bytes they cover."""
    documents = [document for text in texts for document in text.documents]
    share = None if max_tokens is None else max(context, -(-max_tokens // len(documents)))
    left = math.inf if max_tokens is None else max_tokens
    found: list[Passage] = []
    covered = 0
    for document in documents:
        text = document.text if share is None else document.text[: CHARACTERS_PER_TOKEN * (share + 1)]
        ids = tokenizer.encode(text)[: None if share is None else share + 1]
        done = 1  # the first token of a document has nothing before it
        for window_end in range(min(context, len(ids)), len(ids) + stride, stride):
            end = int(min(window_end, len(ids), done + left))
            if end <= done:
                break
            found.append(Passage(torch.tensor(ids[max(0, end - context) : end]), end - done))
            left -= end - done
            done = end
        covered += len(tokenizer.decode(ids[1:done]).encode())
    if not found:
        raise InputError("the evaluation text is too short; give at least two tokens")
    return found, covered


@torch.inference_mode()
def evaluate(
    decoder: Decoder | Scorer,
    tokenizer: TextTokenizer,
    texts: Sequence[Text],
    *,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: Decoder | None = None,
) -> Quality:
    """Quality of ``decoder`` over ``texts``; with ``teacher``, agreement with its predictions too."""
    stride = context // 2 if stride is None else stride
    if not 2 <= context <= decoder.spec.max_seq_len:
        raise InputError(f"--context must be between 2 and the model's {decoder.spec.max_seq_len}, not {context}")
    if not 1 <= stride < context:
        raise InputError(f"--stride must be between 1 and the context less one, not {stride}")
    windows, covered = passages(texts, tokenizer, context, stride, max_tokens)
    sums: list[tuple[float, int]] = []
    kl = agreed = 0.0
    for passage in track(windows, "Evaluating", len(windows)):
        logits = _scored_logits(decoder, passage)
        labels = passage.tokens[-passage.scored :].to(logits.device)
        loss = functional.cross_entropy(logits, labels, reduction="sum").item()
        if not math.isfinite(loss):
            raise InputError("the model predicts NaN; check its weights")
        sums.append((loss, passage.scored))
        if teacher is not None:
            expected = _scored_logits(teacher, passage).log_softmax(-1)
            kl += functional.kl_div(logits.log_softmax(-1), expected, log_target=True, reduction="sum").item()
            agreed += int((logits.argmax(-1) == expected.argmax(-1)).sum())
    count = sum(n for _, n in sums)
    nll = sum(loss for loss, _ in sums) / count
    spread = sum((loss - nll * n) ** 2 for loss, n in sums)
    error = math.sqrt(spread) / count * math.sqrt(len(sums) / max(1, len(sums) - 1))
    return Quality(
        text=", ".join(text.label for text in texts),
        tokens=count,
        context=context,
        stride=stride,
        nll=nll,
        perplexity=math.exp(nll),
        perplexity_stderr=math.exp(nll) * error,
        bits_per_byte=nll * count / covered / math.log(2),
        kl=None if teacher is None else kl / count,
        top1_agreement=None if teacher is None else agreed / count,
    )


def _scored_logits(decoder: Decoder | Scorer, passage: Passage) -> Tensor:
    """Logits [scored, V] that predict the scored tokens."""
    if not isinstance(decoder, Decoder):
        return torch.from_numpy(decoder.score(passage.tokens[:-1].tolist())[-passage.scored :])
    states = decoder.hidden_states(passage.tokens[None, :-1].to(decoder.device))
    return decoder.logits(states[0, -passage.scored :]).float()
