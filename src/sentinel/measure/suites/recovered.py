"""The models of the integration suite: pruned alike, given the features, recovered alike, judged on the same text."""

from __future__ import annotations

import copy
from typing import Any

from sentinel.adapt.integration import integrate
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.prune import Pruner, PruningSettings
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.text.corpora import EVERY_BUILT_IN, load_texts, refuse_shared_documents, sample_windows
from sentinel.adapt.text.kinds import Seen
from sentinel.infer.calibration_text import WINDOW, calibration_texts, calibration_windows
from sentinel.measure.judge import Judge
from sentinel.measure.suites.request import Request
from sentinel.models.decoder import Decoder
from sentinel.progress import say

CRITERION = "fisher"  # one pass over the text; compensation follows
LENGTH = 256  # tokens of a window of recovery
HELD_OUT = 8  # of these windows decide which parameters are kept
EVALUATIONS = 1  # besides the start: of so few steps only the end is of interest

Judged = tuple[Decoder, dict[str, Any]]


class Recovered:
    """Makes the model of a configuration at a pruning ratio, with fields of a result that tell its perplexity.

    Raises `InputError` for random weights, a model without tokenizer, and text that is too short or shared between
    training and judging.
    """

    def __init__(self, request: Request) -> None:
        settings, loaded = request.settings, request.loaded
        loaded.require_real_weights("a perplexity")
        tokenizer = loaded.require_tokenizer()
        texts = load_texts(settings.text, "test")
        training = calibration_texts(settings.calibration, texts) or load_texts(EVERY_BUILT_IN, "train")
        context = min(WINDOW, loaded.spec.max_seq_len)
        calibration = calibration_windows(loaded, settings.calibration, settings.calibration_tokens)
        self._dense, self._steps = loaded.decoder, settings.recovery_steps
        self._recovery = RecoverySettings(steps=self._steps, evaluations=EVALUATIONS)
        length = min(LENGTH, loaded.spec.max_seq_len)
        windows = sample_windows(training, tokenizer, (self._steps * self._recovery.batch + HELD_OUT) * length, length)
        refuse_shared_documents({*calibration.fingerprints, *windows.fingerprints}, texts)
        self._held_out, self._train = windows.tokens[:HELD_OUT], windows.tokens[HELD_OUT:]
        self._pruner = Pruner(expand_kv(self._dense), PruningSettings(CRITERION), calibration)
        tokens = settings.eval_tokens
        self._judge = Judge(self._dense, tokenizer, texts, loaded.record, tokens_per_text=tokens, context=context)
        names = ",".join([settings.calibration, *(text.label for text in training)])
        self._seen = Seen.of(loaded.record).also(names, {*calibration.fingerprints, *windows.fingerprints})
        self._fields = {"text": ", ".join(text.label for text in texts), "context": context}

    def pruned(self, heads: float) -> Decoder:
        """The model without that share of its heads, compensated; the model itself at 0."""
        return self._pruner.apply([self._pruner.order(heads, 0.0).plan(heads)])[0] if heads else self._dense

    def made(self, configuration: str, pruned: Decoder, heads: float) -> Judged:
        """A copy of ``pruned`` with that configuration's features, recovered and judged.

        The unpruned model learns nothing: every configuration of it is its own teacher, exactly.
        """
        model = integrate(copy.deepcopy(pruned), configuration, baseline=self._dense)
        how: dict[str, Any] = {"recovery_steps": 0}
        if heads:
            say(f"integration: {configuration} without {heads:.0%} of the heads learns for {self._steps} steps")
            found = recover(model, self._dense, self._train, self._held_out, self._recovery)
            how = {"recovery_steps": len(found.steps), "criterion": CRITERION, "compensated": True}
        return model, {**self._fields, **self._judge(model, self._seen if heads else None), **how}
