"""Text that keeps to a form: JSON, JSON of a schema, or a regular expression. Needs llguidance (the extra ``serve``).

After every token llguidance's parser says which tokens may come next, and the sampler takes only those. So an answer that
ends by itself is of the form, and one that is cut at its last token is the beginning of such a text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer  # pyright: ignore[reportMissingImports]

Logits = NDArray[np.float32]
SPACES = r"[ \n]{0,12}"  # between two parts of JSON; a small model may write nothing else for ever


@dataclass(frozen=True)
class Form:
    """A regular expression (``is_regex``), or a JSON schema as text."""

    text: str
    is_regex: bool = False

    @classmethod
    def json_object(cls) -> Form:
        """Any JSON object."""
        return cls('{"type": "object"}')

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Form:
        """JSON of that schema."""
        return cls(json.dumps(schema))

    @classmethod
    def regex(cls, pattern: str) -> Form:
        """What a regular expression matches from end to end (the syntax of Rust's ``regex``: no look-around)."""
        return cls(pattern, is_regex=True)


class Grammars:
    """Forms for the texts of a model that has ``vocab_size`` logits."""

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int) -> None:
        self._source, self._vocab_size = tokenizer, vocab_size
        self._tokenizer: LLTokenizer | None = None
        self._making = threading.Lock()

    def begin(self, form: Form) -> Constraint:
        """What keeps a new text to ``form``. Raises `InputError` for a form that is none, and for a tokenizer whose tokens
        are not told by bytes."""
        matching = _llguidance().LLMatcher
        if form.is_regex:
            grammar = matching.grammar_from_regex(form.text)
        else:
            spaces = {"whitespace_flexible": True, "whitespace_pattern": SPACES}
            try:
                grammar = matching.grammar_from_json_schema(form.text, overrides=spaces)
            except ValueError as error:
                raise InputError(f"the JSON schema is none ({error})") from error
        matcher = matching(self._made(), grammar, log_level=0)
        if matcher.is_error():
            kind = "regular expression" if form.is_regex else "JSON schema"
            raise InputError(f"the {kind} can't be kept to ({_first_line(matcher.get_error())})")
        return Constraint(matcher, self._vocab_size)

    def _made(self) -> LLTokenizer:
        """The tokenizer as llguidance has it, which takes about a second the first time."""
        with self._making:
            made = self._tokenizer
            if made is None:
                if not self._source.eos_ids:
                    raise InputError("the tokenizer names no token that ends a text, so that no form can be kept to")
                text, ends = self._source.fast.to_str(), list(self._source.eos_ids)
                try:
                    made = _llguidance().LLTokenizer(text, n_vocab=self._vocab_size, eos_token=ends)
                except ValueError as error:
                    raise InputError(f"text of this tokenizer can't be kept to a form ({error})") from error
                self._tokenizer = made
            return made


class Constraint:
    """Where a text of a form has got to."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> Constraint:
        """Another one at the same place."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self, logits: Logits) -> Logits:
        """``logits`` [V] with those of tokens that may not come next at minus infinity; after the end of a text there is
        only its end again. Raises `InputError` for a form that got too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InputError(f"the form got too complex ({_first_line(self._matcher.get_error())})")
        may = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        return np.where(may, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """The text has one token more, which was allowed."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:200]


def _llguidance() -> Any:
    try:
        import llguidance  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("llguidance is missing; pip install 'sentinel-ai[serve]'") from error
    return llguidance
