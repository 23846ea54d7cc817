"""Text to token ids and back, from the tokenizer files of a model folder, without importing transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer

from sentinel.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `InputError` names the file when it is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object")
    return data


class TextTokenizer:
    """A byte-level or other fast tokenizer with the model's end-of-sequence ids."""

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int], folder: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.folder = folder

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer | None:
        """The tokenizer in ``folder``: ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``; None without."""
        if (folder / "tokenizer.json").exists():
            try:
                tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # tokenizers raises bare Exception for a file that it can't read
                raise InputError(f"{folder / 'tokenizer.json'} is not a tokenizer file ({error})") from error
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            tokenizer = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        else:
            return None
        return cls(tokenizer, _eos_ids(folder, tokenizer), folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def fast(self) -> Any:
        """The object of the tokenizers library."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def copy_files(self, folder: Path) -> None:
        """Put the tokenizer's files into ``folder``, so that Hugging Face's tokenizers load from there too."""
        if self.folder is None:
            self._tokenizer.save(str(folder / "tokenizer.json"))
            return
        for name in TOKENIZER_FILES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)


def _eos_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            value = read_json(folder / name).get("eos_token_id")
            if value is not None:
                return tuple(value) if isinstance(value, list) else (int(value),)
    if (folder / "tokenizer_config.json").exists():
        token = read_json(folder / "tokenizer_config.json").get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.token_to_id(token) if token else None
        if found is not None:
            return (found,)
    return ()
