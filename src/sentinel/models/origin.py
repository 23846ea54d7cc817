"""What a command may ask of a model, however it runs; known without importing torch."""

from __future__ import annotations

from sentinel.errors import InputError
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.token_text import check_vocabulary
from sentinel.models.tokenizer import TextTokenizer


class Origin:
    """A model's name, its tokenizer if it has one, and the record of how it was made.

    ``description`` says what the name leaves out, for a note beside results; empty where there is nothing to say.
    """

    name: str
    tokenizer: TextTokenizer | None
    record: Record
    description: str = ""

    @property
    def weights(self) -> str:
        """ "real", or "random" where the numbers mean nothing but the shape."""
        return self.record.weights

    @property
    def spec(self) -> ModelSpec:
        """The shape of the model."""
        raise NotImplementedError

    def require_tokenizer(self) -> TextTokenizer:
        """The tokenizer, or `InputError` when the model came without one, or with one that it is too small for."""
        if self.tokenizer is None:
            raise InputError(f"{self.name} has no tokenizer, so it can't read or write text")
        check_vocabulary(self.tokenizer, self.spec.vocab_size, self.name)
        return self.tokenizer

    def require_real_weights(self, purpose: str) -> None:
        """Refuse to judge quality by random weights."""
        if self.weights == "random":
            raise InputError(
                f"{self.name} has random weights, so {purpose} would mean nothing; leave out --random-weights"
            )
