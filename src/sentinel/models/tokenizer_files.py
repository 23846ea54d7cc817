"""The tokenizer's files of a model folder: read as Hugging Face's AutoTokenizer reads them, and written.

AutoTokenizer decides by many fields and files (class, added tokens, special tokens, BOS, prefix space, sentencepiece),
so it reads every folder that sentinel has not written. What it gives is written as one ``tokenizer.json`` that says all,
with its digest in ``tokenizer_config.json``; such a folder is read without importing transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sentinel.errors import InputError
from sentinel.plain import is_list, is_object

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
DIGEST = "sentinel_tokenizer_sha256"  # in tokenizer_config.json: the tokenizer.json that says all
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
VOCABULARIES = (
    TOKENIZER,
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
# By which packages, as pip and as Python call them, transformers reads a vocabulary that stands alone.
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
TIKTOKEN = {"tiktoken": "tiktoken"}
READ_BY = {
    "tokenizer.model": SENTENCEPIECE,
    "spiece.model": SENTENCEPIECE,
    "sentencepiece.bpe.model": SENTENCEPIECE,
    "tiktoken.model": TIKTOKEN,
}
COPIED = (*VOCABULARIES[1:], "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
KEPT = (
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `InputError` names the file when it is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not is_object(data):
        raise InputError(f"{path} must hold a JSON object")
    return data


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any]] | None:
    """The tokenizer in ``folder`` and its settings (fields of ``tokenizer_config.json``); None where there is none."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        return None
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    if DIGEST in settings and (folder / TOKENIZER).exists() and _digest(folder / TOKENIZER) == settings[DIGEST]:
        return Tokenizer.from_file(str(folder / TOKENIZER)), {**settings, **_stored_templates(folder)}
    fast = _hugging_face(folder, settings)
    return Tokenizer.from_str(fast.backend_tokenizer.to_str()), _settings_of(fast)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stored_templates(folder: Path) -> dict[str, Any]:
    """``chat_template`` as stored in files of its own, which win over ``tokenizer_config.json``."""
    files = sorted((folder / TEMPLATES).glob("*.jinja"))
    if (folder / TEMPLATE).exists():
        files.insert(0, folder / TEMPLATE)
    named = {("default" if f.name == TEMPLATE else f.stem): f.read_text(encoding="utf-8") for f in files}
    if not named:
        return {}
    if list(named) == ["default"]:
        return {"chat_template": named["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in named.items()]}


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """What transformers logs of a folder's oddities is for its own users."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _require_packages(folder: Path) -> None:
    """Raise `InputError` where a package is missing by which the only vocabulary in ``folder`` is read."""
    found = [name for name in VOCABULARIES if (folder / name).exists()]
    packages = READ_BY[found[-1]] if all(name in READ_BY for name in found) else {}
    if any(importlib.util.find_spec(module) is None for module in packages.values()):
        needed = list(packages)
        raise InputError(f"{folder}: its tokenizer needs {needed[0]}; pip install {' '.join(needed)}")


def _hugging_face(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The object that AutoTokenizer makes of ``folder``; a ``tokenizer.json`` whose class nobody names is taken as is."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    _require_packages(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    model_type = str(config.get("model_type"))
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    named = settings.get("tokenizer_class") or settings.get("auto_map") or config.get("tokenizer_class")
    plain = not named and model_type not in TOKENIZER_MAPPING_NAMES and (folder / TOKENIZER).exists()
    described: Any = AutoConfig  # transformers says the types of its classes in part
    reader: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    try:
        with _quiet():
            if not plain and model_type in CONFIG_MAPPING:
                # Only these fields matter; others, which Hugging Face's checks may refuse, are not the tokenizer's.
                fields = {name: config[name] for name in ("tokenizer_class", "model_name") if config.get(name)}
                options["config"] = described.for_model(model_type, name_or_path=str(folder), **fields)
            fast = reader.from_pretrained(str(folder), **options)
    except Exception as error:  # the tokenizers library raises bare Exception for a file that it can't read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder}: Hugging Face's tokenizer can't be made of its files ({reason})") from error
    if not getattr(fast, "is_fast", False):
        raise InputError(f"{folder}: its tokenizer {type(fast).__name__} has no fast form; save one as tokenizer.json")
    return fast


def _settings_of(fast: Any) -> dict[str, Any]:
    """What is to be known of an object of transformers beside its backend."""
    settings: dict[str, Any] = {name: getattr(fast, name) for name in KEPT if hasattr(fast, name)}
    settings.update({name: token for name, token in fast.special_tokens_map.items() if isinstance(token, str)})
    more = getattr(fast, "extra_special_tokens", None) or getattr(fast, "additional_special_tokens", None)
    if is_list(more) and more:
        settings["additional_special_tokens"] = [str(token) for token in more]
    templates = fast.chat_template
    if is_object(templates):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        settings["chat_template"] = templates
    return settings


def write_tokenizer(tokenizer: Tokenizer, settings: Mapping[str, Any], source: Path | None, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and copies of the other tokenizer files of ``source``."""
    if source is not None:
        for name in (*COPIED, TEMPLATE):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
        if (source / TEMPLATES).is_dir():
            shutil.copytree(source / TEMPLATES, folder / TEMPLATES)
    tokenizer.save(str(folder / TOKENIZER))
    # The plain class takes tokenizer.json as it is; others would build it again by rules of their own.
    fields = {**settings, **_added_around(tokenizer, settings), "tokenizer_class": "PreTrainedTokenizerFast"}
    before = tokenizer.pre_tokenizer
    if before is not None and hasattr(before, "add_prefix_space"):
        fields["add_prefix_space"] = before.add_prefix_space
    fields["added_tokens_decoder"] = {
        str(index): {
            name: getattr(token, name)
            for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    fields[DIGEST] = _digest(folder / TOKENIZER)
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    (folder / SETTINGS).write_text(text, encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer of the folder ``source`` to ``folder``."""
    found = read_tokenizer(source)
    if found is None:
        raise InputError(f"{source} has no tokenizer")
    write_tokenizer(*found, source, folder)


def _added_around(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, bool]:
    """``add_bos_token`` and ``add_eos_token`` where the post-processor adds just these; transformers asks for them."""
    with_specials, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    if with_specials == bare:
        return {}
    ids = [tokenizer.token_to_id(settings.get(name) or "") for name in ("bos_token", "eos_token")]
    for bos, eos in ((True, False), (False, True), (True, True)):
        if with_specials == [*ids[:1] * bos, *bare, *ids[1:] * eos]:
            return {"add_bos_token": bos, "add_eos_token": eos}
    return {}


def end_tokens(folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text: of ``generation_config.json``, else ``config.json``, else the tokenizer's own."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            value = read_json(folder / name).get("eos_token_id")
            if value is not None:
                ids = value if is_list(value) else [value]
                if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
                    raise InputError(
                        f"{folder / name}: eos_token_id must be a token id or a list of them, not {value!r}"
                    )
                return tuple(ids)
    token = settings.get("eos_token")
    found = tokenizer.token_to_id(token) if token else None
    return () if found is None else (found,)
