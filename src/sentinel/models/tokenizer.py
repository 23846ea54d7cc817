"""Text to token ids and back, as Hugging Face's tokenizer of a model folder does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sentinel.errors import InputError
from sentinel.models.tokenizer_files import (
    SPECIAL_TOKENS,
    end_tokens,
    read_json,
    read_tokenizer,
    write_tokenizer,
)
from sentinel.plain import is_list

if TYPE_CHECKING:
    from sentinel.models.chat import Message

__all__ = ["TextTokenizer", "read_json"]

# What Hugging Face's clean_up_tokenization replaces, in its order.
SPACES = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"))
MORE_SPACES = ((" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))
FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class TextTokenizer:
    """A fast tokenizer with the model's end-of-sequence ids.

    ``settings`` are the fields of Hugging Face's ``tokenizer_config.json``: special tokens, chat template, cleaning.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_ids: Iterable[int],
        folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.folder = folder
        self._settings = dict(settings or {})
        # What a file remembers of an earlier use would cut texts and pad prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(self._settings.get("split_special_tokens", False))

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer | None:
        """The tokenizer that Hugging Face's AutoTokenizer reads in ``folder``; None where there is none.

        A folder written by `copy_files` is read without importing transformers.
        """
        found = read_tokenizer(folder)
        if found is None:
            return None
        tokenizer, settings = found
        return cls(tokenizer, end_tokens(folder, tokenizer, settings), folder, settings)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the model's tokenizer puts around it."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        if self._settings.get("clean_up_tokenization_spaces") and (
            type(self._tokenizer.model).__name__ != "BPE" or self._settings.get(FORCED)
        ):
            for spaced, tight in SPACES + MORE_SPACES:
                text = text.replace(spaced, tight)
        return text

    @property
    def chat_template(self) -> str | None:
        """The default chat template of the model (jinja), or None."""
        templates = self._settings.get("chat_template")
        if is_list(templates):
            return next((entry["template"] for entry in templates if entry["name"] == "default"), None)
        return templates

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text that asks the model to answer ``messages``; `InputError` when it has no chat template."""
        from sentinel.models.chat import render_chat

        template = self.chat_template
        if template is None:
            raise InputError("the model has no chat template; give a raw prompt")
        special = {name: self._settings[name] for name in SPECIAL_TOKENS if self._settings.get(name) is not None}
        return render_chat(template, messages, special)

    def apply_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask the model to answer ``messages`` (each with "role" and "content").

        The template itself writes the special tokens; none is added around it.
        """
        return list(self._tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids)

    def special_id(self, name: str) -> int | None:
        """The id of a special token ("bos", "eos", "unk", "pad"); None where there is none."""
        token = self._settings.get(f"{name}_token")
        return None if token is None else self._tokenizer.token_to_id(str(token))

    @property
    def fast(self) -> Tokenizer:
        """The object of the tokenizers library."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def to_hugging_face(self) -> Any:
        """The same tokenizer as an object of transformers, with its special tokens and chat template."""
        import tempfile

        from transformers import PreTrainedTokenizerFast

        with tempfile.TemporaryDirectory() as name:
            self.copy_files(Path(name))
            kind: Any = PreTrainedTokenizerFast
            return kind.from_pretrained(name)

    def copy_files(self, folder: Path) -> None:
        """Write the tokenizer to ``folder``, so that AutoTokenizer reads the same there, whatever the config says."""
        settings = dict(self._settings)
        if self.eos_ids and not settings.get("eos_token"):
            settings["eos_token"] = self._tokenizer.id_to_token(self.eos_ids[0])
        write_tokenizer(self._tokenizer, settings, self.folder, folder)
