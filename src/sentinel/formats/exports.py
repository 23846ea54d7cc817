"""What `sentinel export` can write: the table of formats, known without importing torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.errors import InputError
from sentinel.models.tokenizer import read_json

if TYPE_CHECKING:
    from sentinel.models.decoder import Decoder
    from sentinel.models.tokenizer import TextTokenizer

# Writes a decoder with its tokenizer, None where there is none, to a path in a precision.
Writer = Callable[["Decoder", "TextTokenizer | None", Path, str], object]


@dataclass(frozen=True)
class ExportFormat:
    """One format: its ``precisions``, the first being the default, and the ``writer`` (``module:function``).

    It is a folder, or one file with that ``suffix``. ``modules`` are those of the ``extra`` that writes it. ``usage`` says
    how to run what is at a path.
    """

    name: str
    precisions: tuple[str, ...]
    writer: str
    usage: Callable[[Path], str]
    suffix: str | None = None
    modules: tuple[str, ...] = ()
    extra: str = ""

    def precision_of(self, asked: str | None) -> str:
        """The precision to write, by default the first; `InputError` for one that the format does not have."""
        if asked is None:
            return self.precisions[0]
        if asked not in self.precisions:
            raise InputError(f"format {self.name} has no precision {asked!r}; it has {', '.join(self.precisions)}")
        return asked

    def load_writer(self) -> Writer:
        """The function that writes it; `InputError` where what it needs is not installed."""
        missing = [module for module in self.modules if importlib.util.find_spec(module) is None]
        if missing:
            raise InputError(
                f"format {self.name} needs {missing[0]}, which is not installed; pip install 'sentinel-ai[{self.extra}]'"
            )
        module, _, name = self.writer.partition(":")
        return getattr(importlib.import_module(module), name)


def _run_hugging_face(path: Path) -> str:
    trust = ", trust_remote_code=True" if "auto_map" in read_json(path / "config.json") else ""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(path)!r}{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(path)!r}{trust})"
    )


def _run_gguf(path: Path) -> str:
    return f"llama-cli -m {path} -p 'Once upon a time'"


def _run_onnx(path: Path) -> str:
    return f"python {path / 'run_onnx.py'} 'Once upon a time'"


EXPORT_FORMATS: Mapping[str, ExportFormat] = {
    found.name: found
    for found in (
        ExportFormat(
            "hugging-face",
            ("fp32", "bf16", "fp16"),
            "sentinel.formats.hugging_face.export:write_hugging_face",
            _run_hugging_face,
        ),
        ExportFormat(
            "gguf",
            ("fp32", "fp16", "bf16", "q8_0", "q4_1", "q4_0"),
            "sentinel.formats.gguf.export:write_gguf",
            _run_gguf,
            suffix=".gguf",
        ),
        ExportFormat(
            "onnx",
            ("fp32", "int8", "int4"),
            "sentinel.formats.onnx_export:write_onnx_folder",
            _run_onnx,
            modules=("onnx",),
            extra="runtimes",
        ),
    )
}


def export_format(name: str) -> ExportFormat:
    """The format of that name; `InputError` names them for another."""
    if name not in EXPORT_FORMATS:
        raise InputError(f"format {name!r} is not known; it is {', '.join(EXPORT_FORMATS)}")
    return EXPORT_FORMATS[name]
