"""Quality of changed models relative to the dense one, on the same windows of the same texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sentinel.adapt.corpora import Text, refuse_seen_text
from sentinel.measure.perplexity import Quality, Scorer, evaluate, perplexity_ratio
from sentinel.models.decoder import Decoder
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer


class Judge:
    """Judges any number of models by ``tokens_per_text`` tokens of each of ``texts``, against ``dense``.

    ``record`` is that of ``dense``: raises `InputError` for a text that it has seen.
    """

    def __init__(
        self,
        dense: Decoder,
        tokenizer: TextTokenizer,
        texts: Sequence[Text],
        record: Record,
        *,
        tokens_per_text: int | None,
        context: int = 512,
    ) -> None:
        refuse_seen_text(record, texts)
        self.texts = texts
        self.context = min(context, dense.spec.max_seq_len)
        self._tokenizer, self._tokens = tokenizer, tokens_per_text
        self._model, self._dense = dense, self._evaluate(dense)
        self.tokens = sum(q.tokens for q in self._dense)

    def _evaluate(self, model: Decoder | Scorer) -> list[Quality]:
        return [
            evaluate(
                model,
                self._tokenizer,
                [text],
                context=self.context,
                stride=self.context - 1,
                max_tokens=self._tokens,
            )
            for text in self.texts
        ]

    def __call__(self, model: Decoder | Scorer) -> dict[str, float | int]:
        """Fields of a `sentinel.measure.results.Result`: means over the texts, weighted by tokens but for the ratio."""
        found = self._dense if model is self._model else self._evaluate(model)
        perplexity = float(np.exp(sum(q.nll * q.tokens for q in found) / self.tokens))
        relative = np.sqrt(sum((q.perplexity_stderr / q.perplexity * q.tokens) ** 2 for q in found)) / self.tokens
        ratio, ratio_stderr = perplexity_ratio(found, self._dense)
        return {
            "perplexity": perplexity,
            "perplexity_stderr": perplexity * float(relative),
            "perplexity_ratio": ratio,
            "perplexity_ratio_stderr": ratio_stderr,
            "bits_per_byte": float(np.mean([q.bits_per_byte for q in found])),
            "tokens": self.tokens,
        }
