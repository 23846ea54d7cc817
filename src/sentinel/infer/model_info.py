"""What a model is made of, how much of it is stored, and how it was made; a quantised folder is read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentinel.formats.folder import read_record, weight_files
from sentinel.infer.native import NativeEngine
from sentinel.infer.opening import refuse_dtype
from sentinel.infer.quantised import is_quantised, load_quantised, load_width, stored_ratios
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec


@dataclass(frozen=True)
class StoredRatio:
    """Shares of heads and neurons that a model can leave out when it is run.

    ``n_byte`` is what is stored for it alone (re-solved projections), in memory; ``weight_bytes_per_token`` what one
    decoded token then reads.
    """

    heads: float
    neurons: float
    n_byte: int
    weight_bytes_per_token: int


@dataclass(frozen=True)
class ModelInfo:
    """Sizes in bytes. ``disk_bytes`` are those of the weights' files, None for weights that are drawn; ``memory_bytes`` of
    the weights as they are run, stored ratios included; ``kv_bytes_per_position`` of one cached position, ``kv_bytes`` of a
    text as long as the context."""

    name: str
    description: str
    spec: ModelSpec
    record: Record
    precision: str
    disk_bytes: int | None
    memory_bytes: int
    weight_bytes_per_token: int
    kv_bytes_per_position: int
    kv_bytes: int
    stored: tuple[StoredRatio, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        spec = self.spec
        return {
            "model": self.name,
            "description": self.description,
            "weights": self.record.weights,
            "precision": self.precision,
            "parameters": spec.parameter_count(),
            "fusion_parameters": spec.fusion_weights,
            "frozen_parameters": spec.parameter_count() - spec.parameter_count(baseline=False),
            "gates": spec.n_head_total,
            "disk_bytes": self.disk_bytes,
            "weight_bytes": self.memory_bytes,
            "weight_bytes_per_token": self.weight_bytes_per_token,
            "kv_bytes_per_position": self.kv_bytes_per_position,
            "kv_bytes": self.kv_bytes,
            "flops_per_token_at_64": spec.flops_per_token(64),
            "stored": [vars(ratio) for ratio in self.stored],
            "record": self.record.to_dict(),
            "spec": spec.to_dict(),
        }


def model_info(model: str, *, random_weights: int | None = None, dtype: str | None = None) -> ModelInfo:
    """What ``model`` (hub id, folder, ``.gguf`` file or ``smollm2-135m``) is made of.

    With ``random_weights`` (a seed) only its shape is taken. ``dtype`` is that of the weights in memory, by default fp32.
    Raises `InputError` for anything that can't be loaded.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() and random_weights is None and is_quantised(folder):
        refuse_dtype(model, dtype)
        return _of_quantised(folder)
    return _of_decoder(model, random_weights, dtype or "fp32")


def _of_quantised(folder: Path) -> ModelInfo:
    weights, _ = load_quantised(folder)
    engine = NativeEngine(weights)
    whole = engine.weight_bytes_per_token()
    stored = []
    for heads, neurons in stored_ratios(folder):
        width = load_width(folder, weights, heads, neurons)
        engine.set_packed_width(width)
        own = 0 if width.projections is None else width.projections.n_byte
        stored.append(StoredRatio(heads, neurons, own, engine.weight_bytes_per_token()))
    return ModelInfo(
        name=folder.resolve().name,
        description="",
        spec=weights.spec,
        record=read_record(folder),
        precision=weights.precision,
        disk_bytes=weight_files_bytes(folder),
        memory_bytes=weights.n_byte + sum(ratio.n_byte for ratio in stored),
        weight_bytes_per_token=whole,
        kv_bytes_per_position=weights.spec.kv_bytes_per_position(engine.kv_bytes),
        kv_bytes=weights.spec.kv_bytes(weights.spec.max_seq_len, engine.kv_bytes),
        stored=tuple(stored),
    )


def _of_decoder(model: str, random_weights: int | None, dtype: str) -> ModelInfo:
    from sentinel.formats.sources import load, locate
    from sentinel.models.dtypes import name_of

    loaded = load(model, random_weights=random_weights, dtype=dtype)
    spec, n_byte = loaded.spec, loaded.decoder.dtype.itemsize
    stored = tuple(
        StoredRatio(
            width.heads,
            width.neurons,
            sum(tensor.nbytes for tensor in width.projections.values()),
            width.width.of(spec).weight_bytes_per_token(n_byte),
        )
        for width in loaded.decoder.widths
    )
    return ModelInfo(
        name=loaded.name,
        description=loaded.description,
        spec=spec,
        record=loaded.record,
        precision=name_of(loaded.decoder.dtype),
        disk_bytes=None if random_weights is not None else weight_files_bytes(locate(model)),
        memory_bytes=spec.parameter_count() * n_byte + sum(ratio.n_byte for ratio in stored),
        weight_bytes_per_token=spec.weight_bytes_per_token(n_byte),
        kv_bytes_per_position=spec.kv_bytes_per_position(n_byte),
        kv_bytes=spec.kv_bytes(spec.max_seq_len, n_byte),
        stored=stored,
    )


def weight_files_bytes(place: Path) -> int:
    """Bytes on disk of a file of weights, or of all those of a folder."""
    files = [place] if place.is_file() else weight_files(place)
    return sum(file.stat().st_size for file in files)
