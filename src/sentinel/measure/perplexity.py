"""Perplexity, bits per byte, and agreement with the unpruned model, over strided windows of a text.

Every document is judged alone, however short: unlike calibration windows, none is packed with another, so that nothing is
predicted from a text that has nothing to do with it. Every token is predicted once, but for the first of a document, which
has nothing before it unless the tokenizer puts a token there. Windows overlap by ``context - stride`` tokens, so that a
predicted token has at least that many before it (but for the first window of a document). When fewer tokens are asked for
than there are, windows are left out evenly over all documents. Sources: Hugging Face, "Perplexity of fixed-length models";
bits per byte as in The Pile (Gao et al. 2020), over the bytes that the predicted tokens stand for.

Standard errors: windows of one document are alike, so that documents are the independent samples (the cluster-robust
error of a ratio of sums; Cochran, Sampling Techniques, 1977, 6.3) where there are at least `FEWEST`. Of fewer documents
the windows are taken as independent, which makes the error somewhat too small; of fewer windows there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sentinel.adapt.recovery.likelihood import finite, perplexity_of
from sentinel.adapt.text.corpora import Text
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.spec import ModelSpec
from sentinel.models.token_text import check_ids, token_bytes
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track


class Scorer(Protocol):
    """What gives logits [last, V] at the last positions of one text, as an engine does."""

    spec: ModelSpec

    def score(self, tokens: Sequence[int], last: int | None = None) -> NDArray[np.float32]: ...


DEFAULT_CONTEXT = 512
FEWEST = 8  # samples that a standard error is told from


@dataclass(frozen=True)
class Passage:
    """A window of tokens [T] of the document of that number; the last ``scored`` are predicted, and ``sizes`` holds the
    bytes of text that each of them stands for."""

    tokens: Tensor
    sizes: NDArray[np.float64]
    document: int

    @property
    def scored(self) -> int:
        return len(self.sizes)

    def without_last(self, count: int) -> Passage:
        """The passage less its last tokens."""
        return Passage(self.tokens[: len(self.tokens) - count], self.sizes[: self.scored - count], self.document)


@dataclass(frozen=True)
class Judged:
    """One window: summed negative log-likelihood, predicted tokens, and the number of its document."""

    loss: float
    tokens: int
    document: int


@dataclass(frozen=True)
class Quality:
    """Quality over one text. ``nll`` is the mean over tokens in nats, ``nll_stderr`` its standard error (see above).

    ``kl`` (nats a token), ``top1_agreement`` and ``teacher``, its loss in the same windows, compare with a teacher, and
    are None without one.
    """

    text: str
    tokens: int
    context: int
    stride: int
    nll: float
    nll_stderr: float | None
    bits_per_byte: float
    kl: float | None
    top1_agreement: float | None
    windows: tuple[Judged, ...]
    teacher: tuple[Judged, ...] | None = None

    @property
    def over_teacher(self) -> tuple[float, float | None] | None:
        """Perplexity over the teacher's, and its standard error, as `perplexity_ratio`; None without a teacher."""
        if self.teacher is None:
            return None
        return perplexity_ratio([self], [replace(self, windows=self.teacher)])

    @property
    def perplexity(self) -> float:
        """Infinite where that is beyond a float."""
        return perplexity_of(self.nll)

    @property
    def perplexity_stderr(self) -> float | None:
        """By the delta method; None where there is no standard error, or the perplexity is infinite."""
        return None if self.nll_stderr is None else finite(self.perplexity * self.nll_stderr)


def passages(
    texts: Sequence[Text], tokenizer: TextTokenizer, context: int, stride: int, max_tokens: int | None
) -> list[Passage]:
    """Windows over all documents, or ``max_tokens`` predicted tokens in windows spread evenly.

    Raises `InputError` for text of less than two tokens, and when no byte of it would be judged.
    """
    found: list[Passage] = []
    for number, document in enumerate(document for text in texts for document in text.documents):
        ids, sizes = token_bytes(tokenizer, document.text)
        done = 1  # the first token of a document has nothing before it
        for window_end in range(min(context, len(ids)), len(ids) + stride, stride):
            end = min(window_end, len(ids))
            if end <= done:
                break
            found.append(Passage(torch.tensor(ids[max(0, end - context) : end], device="cpu"), sizes[done:end], number))
            done = end
    if not found:
        raise InputError("the evaluation text is too short; give at least two tokens")
    if max_tokens is not None:
        found = _spread(found, max_tokens)
    if not any(passage.sizes.any() for passage in found):
        raise InputError("the evaluation text is of special tokens only, which are no text; give text, or more of it")
    return found


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
        chosen.append(chosen.pop().without_last(excess))
    return chosen


@torch.inference_mode()
def evaluate(
    decoder: Decoder | Scorer,
    tokenizer: TextTokenizer,
    texts: Sequence[Text],
    *,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    teacher: Decoder | None = None,
) -> Quality:
    """Quality of ``decoder`` over ``texts``; with ``teacher``, agreement with its predictions too.

    ``context`` is 512 tokens or the model's, ``stride`` half of it. Raises `InputError` for a context or stride that can't
    be, a text that can't be judged, a tokenizer that is not the model's, and a model that predicts NaN.
    """
    spec = decoder.spec
    context = min(DEFAULT_CONTEXT, spec.max_seq_len) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 2 <= context <= spec.max_seq_len:
        raise InputError(f"--context must be between 2 and the model's {spec.max_seq_len}, not {context}")
    if not 1 <= stride < context:
        raise InputError(f"--stride must be between 1 and the context less one, not {stride}")
    windows = passages(texts, tokenizer, context, stride, max_tokens)
    check_ids(max(int(passage.tokens.max()) for passage in windows), spec.vocab_size)
    judged: list[Judged] = []
    expected_loss: list[Judged] = []
    kl = agreed = 0.0
    for passage in track(windows, "Evaluating", len(windows)):
        logits = _scored_logits(decoder, passage)
        labels = passage.tokens[-passage.scored :].to(logits.device)
        loss = functional.cross_entropy(logits, labels, reduction="sum").item()
        if not math.isfinite(loss):
            raise InputError("the model predicts NaN; check its weights")
        judged.append(Judged(loss, passage.scored, passage.document))
        if teacher is not None:
            expected = _scored_logits(teacher, passage).to(logits.device).log_softmax(-1)
            theirs = functional.nll_loss(expected, labels, reduction="sum").item()
            expected_loss.append(Judged(theirs, passage.scored, passage.document))
            kl += functional.kl_div(logits.log_softmax(-1), expected, log_target=True, reduction="sum").item()
            agreed += int((logits.argmax(-1) == expected.argmax(-1)).sum())
    if not math.isfinite(kl):
        raise InputError("the teacher predicts NaN; check its weights")
    count = sum(window.tokens for window in judged)
    nll, error = mean_with_error(judged, [window.loss for window in judged])
    covered = sum(float(passage.sizes.sum()) for passage in windows)
    return Quality(
        text=", ".join(text.label for text in texts),
        tokens=count,
        context=context,
        stride=stride,
        nll=nll,
        nll_stderr=error,
        bits_per_byte=nll * count / covered / math.log(2),
        kl=None if teacher is None else kl / count,
        top1_agreement=None if teacher is None else agreed / count,
        windows=tuple(judged),
        teacher=None if teacher is None else tuple(expected_loss),
    )


def mean_with_error(windows: Sequence[Judged], sums: Sequence[float]) -> tuple[float, float | None]:
    """The mean per token of what ``sums`` holds for each window, and its standard error: see the module's docstring.

    None too where the samples do not differ at all: two models that compute the same leave nothing to be uncertain of.
    """
    counts, values = np.array([window.tokens for window in windows], float), np.array(sums, float)
    mean = float(values.sum() / counts.sum())
    documents = np.unique([window.document for window in windows], return_inverse=True)[1]
    samples = documents if documents.max() + 1 >= FEWEST else np.arange(len(windows))
    number = int(samples.max()) + 1
    gaps = np.bincount(samples, values - mean * counts)
    if number < FEWEST or not gaps.any():
        return mean, None
    return mean, float(np.sqrt(np.square(gaps).sum() * number / (number - 1)) / counts.sum())


def perplexity_ratio(found: Sequence[Quality], dense: Sequence[Quality]) -> tuple[float, float | None]:
    """Perplexity over the dense model's, the geometric mean over texts, and its standard error.

    Both models were judged by the same windows, text by text, so that the error is that of the paired differences. It is
    None when a text has none, and when the ratio is infinite.
    """
    pairs = [
        mean_with_error(ours.windows, [a.loss - b.loss for a, b in zip(ours.windows, theirs.windows, strict=True)])
        for ours, theirs in zip(found, dense, strict=True)
    ]
    ratio = perplexity_of(sum(gap for gap, _ in pairs) / len(pairs))
    errors = [error for _, error in pairs if error is not None]
    return ratio, finite(ratio * math.hypot(*errors) / len(pairs)) if len(errors) == len(pairs) else None


def _scored_logits(decoder: Decoder | Scorer, passage: Passage) -> Tensor:
    """Logits [scored, V] that predict the scored tokens."""
    if not isinstance(decoder, Decoder):
        return torch.from_numpy(decoder.score(passage.tokens[:-1].tolist(), passage.scored))
    states = decoder.hidden_states(passage.tokens[None, :-1].to(decoder.device))
    return decoder.logits(states[0, -passage.scored :]).float()
