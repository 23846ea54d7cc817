"""`export`: write a model for the runtimes of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sentinel.api.model import Model, as_model
from sentinel.errors import InputError
from sentinel.files import check_output_file, check_output_folder, write_file, write_folder
from sentinel.formats.exports import ExportFormat, export_format
from sentinel.formats.folder import MODEL_FILES
from sentinel.models.features import INTEGRATION, features
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import say, working

EXPORTED_FILES = (*MODEL_FILES, "modeling_sentinel.py", "*.onnx", "*.onnx.data", "genai_config.json", "run_onnx.py")


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: where, as what, how many bytes, and ``usage``, how to run it (a command, or lines of Python)."""

    path: Path
    format: str
    precision: str
    n_byte: int
    usage: str


def export(
    model: Model | str | Path,
    path: str | Path,
    format: str = "hugging-face",
    *,
    heads: float = 0.0,
    neurons: float = 0.0,
    precision: str | None = None,
    force: bool = False,
) -> Exported:
    """Write ``model`` to ``path`` for another runtime: format hugging-face or onnx (a folder), or gguf (one file).

    ``heads`` and ``neurons`` choose a stored width of an elastic model. ``precision`` is fp32 unless another of the
    format's is asked for. What is at ``path`` is refused; with ``force`` what sentinel wrote there is replaced.

    Raises `InputError` for a model that the format can't hold, which is named, and for what can't be written.
    """
    wanted = export_format(format)
    chosen = wanted.precision_of(precision)
    source = model.source if isinstance(model, Model) else str(model)
    check_export_path(path, wanted, force, source)
    write = wanted.load_writer()
    loaded = as_model(model, "auto").loaded
    borrowed = sorted(features(loaded.spec) & INTEGRATION)
    if borrowed:
        raise InputError(
            f"{loaded.name} has {' and '.join(borrowed)}, which no other runtime runs; "
            "'sentinel integrate --configuration original' takes them off"
        )
    tokenizer = _tokenizer_of(loaded.tokenizer, loaded.name)
    target = Path(path)
    with working(f"Writing {target} as {format} in {chosen}"):
        decoder = loaded.decoder.at_width(heads, neurons)
        if wanted.suffix is None:
            with write_folder(target, force) as temporary:
                write(decoder, tokenizer, temporary, chosen)
        else:
            with write_file(target) as temporary:
                write(decoder, tokenizer, temporary, chosen)
    return Exported(target, format, chosen, _size(target), wanted.usage(target))


def check_export_path(path: str | Path, wanted: ExportFormat, force: bool, source: str | None) -> None:
    """Refuse early what can't be written, what is there already, unless it may be replaced, and the model that is read."""
    target = Path(path).expanduser()
    if source is not None and target.exists() and Path(source).expanduser().resolve() == target.resolve():
        raise InputError(f"{path} is the model that is read, and would be lost; name another place to write to")
    if wanted.suffix is None:
        check_output_folder(path, force, EXPORTED_FILES)
        return
    place = check_output_file(path, regular=True)
    if place.suffix != wanted.suffix:
        raise InputError(f"{path}: a file of format {wanted.name} ends with {wanted.suffix}; name it so")
    if place.exists() and not force:
        raise InputError(f"{path} exists; name another file, or add --force (force=True), which replaces it")


def _tokenizer_of(tokenizer: TextTokenizer | None, name: str) -> TextTokenizer | None:
    if tokenizer is None:
        say(f"{name} has no tokenizer, so none is written: token ids go in and come out")
    return tokenizer


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
