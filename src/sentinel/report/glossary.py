"""Abbreviations and words of a report, each explained once."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

GLOSSARY = {
    "TTFT": "time to first token: from the prompt's start to the first new token",
    "TPOT": "time per output token: of each new token after the first",
    "MBU": "memory-bandwidth utilisation: the share of the measured bandwidth that the bytes of one step account for",
    "roofline": "the speed at which one step would run if it only read its bytes at the measured memory bandwidth",
    "KV": "keys and values: what attention keeps of every token before",
    "MB": "10⁶ bytes",
    "GB": "10⁹ bytes",
    "ms": "milliseconds",
    "fp32": "weights as 32-bit floating-point numbers",
    "int8": "weights as 8-bit integers, with a scale per row",
    "int4": "weights as 4-bit integers, with a step and a lowest value per group of 32",
    "perplexity": "e to the mean loss per token on a text; lower is better",
    "over dense": "a perplexity divided by that of the model that was not changed, on the same tokens",
    "top-1 agreement": "the share of tokens at which the likeliest next token is the dense model's",
    "greedy": "the likeliest token is always taken",
    "compensated": "what stays is solved again so that it makes up for what was removed",
    "criterion": "the rule by which heads are ranked for removal",
    "±": "a standard error; – where there is too little text to know it",
}
_WORDS = sorted(GLOSSARY, key=len, reverse=True)
_FIND = re.compile("|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in _WORDS if word != "±"))


class FirstUse:
    """Marks the first use of every word of the glossary on one page."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> Markup:
        """``text`` as HTML, with its explanation at every word that is met for the first time."""
        parts, done = [], 0
        for found in _FIND.finditer(text):
            word = found.group()
            if word in self._said:
                continue
            self._said.add(word)
            parts += [
                escape(text[done : found.start()]),
                Markup('<abbr title="{}">{}</abbr>').format(GLOSSARY[word], word),
            ]
            done = found.end()
        return Markup("").join([*parts, escape(text[done:])])
