"""Quantised checkpoints: a folder that level 3 runs without importing torch.

It holds ``config.json``, ``model.native.safetensors``, the tokenizer's files, and for an elastic model one
``width-N.native.safetensors`` per stored width, so that a width is set without quantising again. Earlier versions wrote
``levels`` and ``level-N`` for ``widths`` and ``width-N``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sentinel.errors import InputError
from sentinel.files import write_folder
from sentinel.formats.folder import MODEL_TYPE, read_config, read_record
from sentinel.infer.draft_choice import DraftChoice
from sentinel.infer.levels import check_kv
from sentinel.infer.native import NativeEngine, NativeWeights, PackedWidth
from sentinel.infer.native.kv_cache import KvKind
from sentinel.models.origin import Origin
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

WEIGHTS_FILE = "model.native.safetensors"


Ratios = tuple[float, float]  # shares of heads and neurons that a width leaves out


@dataclass
class QuantisedModel(Origin):
    """Packed weights with their origin. Stored widths are ``widths`` in memory, or files of the ``folder`` it came from."""

    name: str
    native: NativeWeights
    tokenizer: TextTokenizer | None
    record: Record
    widths: Mapping[Ratios, PackedWidth] = field(default_factory=dict)
    folder: Path | None = None
    description: str = ""

    @classmethod
    def load(cls, folder: Path) -> QuantisedModel:
        """The quantised checkpoint in ``folder``; `InputError` when it is damaged."""
        weights, tokenizer = load_quantised(folder)
        return cls(folder.resolve().name, weights, tokenizer, read_record(folder), folder=folder)

    @property
    def spec(self) -> ModelSpec:
        return self.native.spec

    @property
    def loaded(self) -> NoReturn:
        """`InputError`: there is no decoder that could be changed."""
        raise InputError(
            f"{self.name} is quantised ({self.native.precision}), so that it only runs; take the model that it was made "
            "from"
        )

    @property
    def quantised(self) -> QuantisedModel:
        """Itself."""
        return self

    def engine(
        self,
        level: int | None = None,
        precision: str | None = None,
        heads: float = 0.0,
        neurons: float = 0.0,
        threads: int | None = None,
        draft: str | None = None,
        kv: str | None = None,
    ) -> NativeEngine:
        """Level 3 at a stored width, with another one for drafts; ``kv`` is what it keeps keys and values in.

        Raises `InputError` for another level or precision, for a width that is not stored, and for a quantised draft.
        """
        cached = check_kv(kv, 3, "cpu")
        if level not in (None, 3) or precision not in (None, self.native.precision):
            raise InputError(f"{self.name} is quantised to {self.native.precision}, so that only level 3 runs it so")
        engine = self.at_width(heads, neurons, threads, cached)
        if draft is not None:
            choice = DraftChoice.parse(draft)
            choice.check_cheaper(self.native.precision, heads, neurons)
            if choice.precision is not None:
                raise InputError(
                    f"{self.name} is quantised, so that no copy in {choice.precision} can be made of it; draft by a stored "
                    "width, or give the model that it was made from"
                )
            engine.draft_by(self.at_width(choice.heads, choice.neurons, threads, cached), draft)
        return engine

    def at_width(self, heads: float, neurons: float, threads: int | None, kv: KvKind | None = None) -> NativeEngine:
        """An engine at a stored width, the whole for none; `InputError` for a width that is not stored."""
        engine = NativeEngine(self.native, threads=threads, kv=kv)
        if heads or neurons:
            engine.set_packed_width(self.stored(heads, neurons))
        return engine

    def stored(self, heads: float, neurons: float) -> PackedWidth:
        """A stored width; `InputError` that names the stored ones for another."""
        if self.folder is not None:
            return load_width(self.folder, self.native, heads, neurons)
        return self.widths[stored_key(self.name, self.widths, heads, neurons)]

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write a quantised checkpoint; see `save_quantised`."""
        widths = self.widths
        if self.folder is not None:
            widths = {ratios: self.stored(*ratios) for ratios in stored_ratios(self.folder)}
        save_quantised(self.native, widths, folder, self.tokenizer, self.record, force=force)
        return Path(folder)


def save_quantised(
    weights: NativeWeights,
    widths: Mapping[Ratios, PackedWidth],
    folder: str | Path,
    tokenizer: TextTokenizer | None,
    record: Record,
    *,
    force: bool = False,
) -> None:
    """Write a quantised checkpoint with the ``record`` of how it was made, whole or not at all; see `write_folder`."""
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "precision": weights.precision,
        "spec": weights.spec.to_dict(),
        "record": record.to_dict(),
    }
    if tokenizer is not None and tokenizer.eos_ids:
        config["eos_token_id"] = list(tokenizer.eos_ids)
    files = [f"width-{i}.native.safetensors" for i in range(len(widths))]
    if widths:
        named = zip(widths, files, strict=True)
        config["widths"] = [{"heads": heads, "neurons": neurons, "file": file} for (heads, neurons), file in named]
    with write_folder(folder, force) as temporary:
        weights.save(temporary / WEIGHTS_FILE)
        for width, file in zip(widths.values(), files, strict=True):
            width.save(temporary / file, weights.precision)
        if tokenizer is not None:
            tokenizer.copy_files(temporary)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def is_quantised(folder: Path) -> bool:
    """True for a folder that `save_quantised` wrote."""
    return (folder / WEIGHTS_FILE).exists()


def load_quantised(folder: Path) -> tuple[NativeWeights, TextTokenizer | None]:
    """The weights and the tokenizer of a quantised checkpoint; `InputError` when they do not belong together."""
    weights = NativeWeights.load(folder / WEIGHTS_FILE)
    if ModelSpec.from_dict(read_config(folder).get("spec", {})) != weights.spec:
        raise InputError(f"{folder}: config.json and {WEIGHTS_FILE} are of different models; quantise again")
    return weights, TextTokenizer.from_folder(folder)


def stored_ratios(folder: Path) -> dict[Ratios, str]:
    """The files of a quantised checkpoint's widths by the shares of heads and neurons that they leave out."""
    config = read_config(folder)
    try:
        listed = config.get("widths") or config.get("levels") or ()
        return {(float(entry["heads"]), float(entry["neurons"])): str(entry["file"]) for entry in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: its widths are damaged ({error}); quantise again") from error


def load_width(folder: Path, weights: NativeWeights, heads: float, neurons: float) -> PackedWidth:
    """A stored width of a quantised checkpoint; `InputError` that names the stored ones for another."""
    stored = stored_ratios(folder)
    file = stored[stored_key(str(folder), stored, heads, neurons)]
    return PackedWidth.load(folder / file, weights.spec, weights.precision)


def stored_key(name: str, stored: Collection[Ratios], heads: float, neurons: float) -> Ratios:
    """Which of the ``stored`` ratios those of ``heads`` and ``neurons`` are."""
    for key in stored:
        if (round(heads, 4), round(neurons, 4)) == (round(key[0], 4), round(key[1], 4)):
            return key
    if not stored:
        raise InputError(f"{name} is quantised at one width; quantise an elastic model to have others")
    known = ", ".join(f"{h:g}/{n:g}" for h, n in sorted(stored))
    raise InputError(f"{name} stores no width {heads:g}/{neurons:g} of heads and neurons; stored are {known}")
