"""Quality of changed models relative to the dense one, on the same windows of the same texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sentinel.adapt.recovery.likelihood import finite, perplexity_of
from sentinel.adapt.text.corpora import Text, refuse_seen_text
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
        self._last: tuple[Decoder | Scorer, list[Quality]] = dense, self._dense
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

    def _found(self, model: Decoder | Scorer) -> list[Quality]:
        """The quality of ``model`` on each text; of the last one that was judged, what was found then."""
        if model is self._model:
            return self._dense
        if model is not self._last[0]:
            self._last = model, self._evaluate(model)
        return self._last[1]

    def by_text(self, model: Decoder | Scorer) -> list[float | None]:
        """Perplexity over the dense model's on each of the texts; None for an infinite one."""
        pairs = zip(self._found(model), self._dense, strict=True)
        return [finite(perplexity_ratio([found], [dense])[0]) for found, dense in pairs]

    def __call__(self, model: Decoder | Scorer) -> dict[str, Any]:
        """Fields of a `sentinel.measure.results.Result`: means over the texts, weighted by tokens but for the ratio.

        None stands for what is unknown: a standard error that a text has none of, and an infinite perplexity or ratio.
        """
        found = self._found(model)
        nll = sum(q.nll * q.tokens for q in found) / self.tokens
        perplexity = finite(perplexity_of(nll))
        errors = [q.nll_stderr * q.tokens for q in found if q.nll_stderr is not None]
        error = math.hypot(*errors) / self.tokens
        ratio, ratio_stderr = perplexity_ratio(found, self._dense)
        return {
            "nll": nll,
            "perplexity": perplexity,
            "perplexity_stderr": None if perplexity is None or len(errors) < len(found) else perplexity * error,
            "perplexity_ratio": finite(ratio),
            "perplexity_ratio_stderr": ratio_stderr,
            "bits_per_byte": sum(q.bits_per_byte for q in found) / len(found),
            "tokens": self.tokens,
        }
