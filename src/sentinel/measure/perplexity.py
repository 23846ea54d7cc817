"""Perplexity, bits per byte, and agreement with the unpruned model, over strided windows of a text.

Every token is predicted once. Windows overlap by ``context - stride`` tokens, so that a predicted token has at least
that many before it (but for the first window of a document). When fewer tokens are asked for than there are, windows are
left out evenly over all documents. Sources: Hugging Face, "Perplexity of fixed-length models"; bits per byte as in The
Pile (Gao et al. 2020).
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

    ``kl`` (nats a token) and ``top1_agreement`` compare with a teacher, and are None without one. ``windows`` holds each
    window's summed negative log-likelihood and its number of predicted tokens.
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
    windows: tuple[tuple[float, int], ...]


def passages(
    texts: Sequence[Text], tokenizer: TextTokenizer, context: int, stride: int, max_tokens: int | None
) -> tuple[list[Passage], int]:
    """Windows over all documents, or ``max_tokens`` predicted tokens in windows spread evenly; and the bytes they cover."""
    found: list[Passage] = []
    for document in (document for text in texts for document in text.documents):
        ids = tokenizer.encode(document.text)
        done = 1  # the first token of a document has nothing before it
        for window_end in range(min(context, len(ids)), len(ids) + stride, stride):
            end = min(window_end, len(ids))
            if end <= done:
                break
            found.append(Passage(torch.tensor(ids[max(0, end - context) : end]), end - done))
            done = end
    if not found:
        raise InputError("the evaluation text is too short; give at least two tokens")
    if max_tokens is not None:
        found = _spread(found, max_tokens)
    covered = sum(len(tokenizer.decode(p.tokens[-p.scored :].tolist()).encode()) for p in found)
    return found, covered


def _spread(windows: list[Passage], max_tokens: int) -> list[Passage]:
    """Evenly spaced windows with ``max_tokens`` predicted tokens in all; the last one is cut to fit."""
    wanted = max(1, max_tokens // max(window.scored for window in windows))
    while True:
        wanted = min(wanted, len(windows))
        chosen = [windows[(2 * i + 1) * len(windows) // (2 * wanted)] for i in range(wanted)]
        excess = sum(window.scored for window in chosen) - max_tokens
        if excess >= 0 or wanted == len(windows):
            break
        wanted += 1
    while excess >= chosen[-1].scored:
        excess -= chosen.pop().scored
    if excess > 0:
        last = chosen.pop()
        chosen.append(Passage(last.tokens[: len(last.tokens) - excess], last.scored - excess))
    return chosen


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
    if not math.isfinite(kl):
        raise InputError("the teacher predicts NaN; check its weights")
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
        windows=tuple(sums),
    )


def perplexity_ratio(found: Sequence[Quality], dense: Sequence[Quality]) -> tuple[float, float]:
    """Perplexity over the dense model's, the mean over texts, and its standard error.

    Both models were judged by the same windows, text by text, so that the error is that of the paired differences.
    """
    ratios, errors = [], []
    for ours, theirs in zip(found, dense, strict=True):
        counts = np.array([n for _, n in ours.windows], float)
        gaps = np.array([a - b for (a, _), (b, _) in zip(ours.windows, theirs.windows, strict=True)])
        gap = gaps.sum() / counts.sum()
        spread = np.sqrt(np.square(gaps - gap * counts).sum() * len(gaps) / max(1, len(gaps) - 1)) / counts.sum()
        ratios.append(math.exp(gap))
        errors.append(math.exp(gap) * spread)
    return float(np.mean(ratios)), float(np.sqrt(np.square(errors).sum()) / len(errors))


def _scored_logits(decoder: Decoder | Scorer, passage: Passage) -> Tensor:
    """Logits [scored, V] that predict the scored tokens."""
    if not isinstance(decoder, Decoder):
        return torch.from_numpy(decoder.score(passage.tokens[:-1].tolist())[-passage.scored :])
    states = decoder.hidden_states(passage.tokens[None, :-1].to(decoder.device))
    return decoder.logits(states[0, -passage.scored :]).float()
