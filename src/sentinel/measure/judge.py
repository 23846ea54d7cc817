"""Quality of changed models relative to the dense one, on the same windows of the same texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sentinel.adapt.recovery.likelihood import finite, perplexity_of
from sentinel.adapt.text.corpora import Text, refuse_seen_text
from sentinel.adapt.text.kinds import Seen, seen_together
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
        self._seen = Seen.of(record)
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

    def __call__(self, model: Decoder | Scorer, seen: Seen | None = None) -> dict[str, Any]:
        """Fields of a `sentinel.measure.results.Result`, with those of each text in ``by_kind``.

        ``seen`` is what was read to make ``model``, by default what the dense model had seen. Where some of the texts are
        of kinds that it has not seen, all fields are of these alone, else of all texts: means weighted by tokens, and the
        ratio to the dense model as geometric mean. None stands for what is unknown: a standard error that a text has none
        of, and an infinite perplexity or ratio.
        """
        known = self._seen if seen is None else seen
        kinds = [known.kind_of(text) for text in self.texts]
        triples = list(zip(self._found(model), self._dense, kinds, strict=True))
        unseen = [triple for triple in triples if triple[2] is not True] or triples
        each = {text.label: _fields([triple]) for text, triple in zip(self.texts, triples, strict=True)}
        return {**_fields(unseen), "by_kind": each}


def over_kinds(by_kind: Mapping[str, Mapping[str, Any]], kinds: Sequence[str]) -> tuple[float | None, float | None]:
    """The geometric mean of the ratios of a row's ``by_kind`` on some kinds, and its standard error; None for unknown."""
    ratios = [by_kind[kind]["perplexity_ratio"] for kind in kinds]
    errors = [by_kind[kind]["perplexity_ratio_stderr"] for kind in kinds]
    if None in ratios:
        return None, None
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    if None in errors:
        return mean, None
    return mean, mean * math.hypot(*(e / r for e, r in zip(errors, ratios, strict=True))) / len(ratios)


def _fields(judged: Sequence[tuple[Quality, Quality, bool | None]]) -> dict[str, Any]:
    """What is said of the quality on some texts, each beside the dense model's and whether its kind was seen."""
    found, dense, kinds = (list(column) for column in zip(*judged, strict=True))
    tokens = sum(q.tokens for q in found)
    nll = sum(q.nll * q.tokens for q in found) / tokens
    perplexity = finite(perplexity_of(nll))
    errors = [q.nll_stderr * q.tokens for q in found if q.nll_stderr is not None]
    ratio, ratio_stderr = perplexity_ratio(found, dense)
    return {
        "seen_kind": seen_together(kinds),
        "nll": nll,
        "perplexity": perplexity,
        "perplexity_stderr": None
        if perplexity is None or len(errors) < len(found)
        else perplexity * math.hypot(*errors) / tokens,
        "perplexity_ratio": finite(ratio),
        "perplexity_ratio_stderr": ratio_stderr,
        "bits_per_byte": sum(q.bits_per_byte for q in found) / len(found),
        "tokens": tokens,
    }
