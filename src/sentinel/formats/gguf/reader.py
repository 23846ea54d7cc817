"""Reads a GGUF file of any family that says how llama.cpp keeps it, or of layers that differ; weights are de-quantised."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from sentinel.errors import InputError
from sentinel.formats.gguf import unequal
from sentinel.formats.gguf.config import EMBEDDING, config_of, has_bias
from sentinel.formats.gguf.rope import TENSORS as ROPE_TENSORS
from sentinel.formats.gguf.tokenizer import build_tokenizer
from sentinel.formats.stored import StoredWeights
from sentinel.models.families import family_of, family_of_gguf
from sentinel.models.families.family import Family
from sentinel.models.families.gguf import IN_OUT, UNEQUAL_LAYERS, GGUFFields, GGUFLayout
from sentinel.models.families.weights import Stored, read_weights
from sentinel.models.rows import ALL, Unread
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track


class GGUFFile:
    """An opened GGUF file. Raises `InputError` for a damaged file and for an architecture that no family has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader: Any = gguf.GGUFReader(str(path))
        except (ValueError, IndexError, KeyError, OverflowError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged, truncated or not a GGUF file ({error})") from error
        self.architecture = str(self._get("general.architecture"))
        self.family, self._layout = self._family()
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if EMBEDDING not in self._tensors:
            raise InputError(f"{path}: GGUF tensor {EMBEDDING!r} is missing")

    def _family(self) -> tuple[Family, GGUFLayout | None]:
        """The family of the file and how it is held; without the latter where layers may differ."""
        if self.architecture == UNEQUAL_LAYERS:
            return family_of("llama"), None
        return family_of_gguf(self.architecture, self._own(), self.path)

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None and default is None:
            raise InputError(f"{self.path}: GGUF field {key!r} is missing")
        return default if field is None else _plain(field)

    def _fields(self) -> GGUFFields:
        return GGUFFields(self.path, self.architecture, self._own(), self._tensors)

    def _own(self) -> dict[str, Any]:
        """The fields of the architecture, without its name before them."""
        prefix = f"{self.architecture}."
        return {k.removeprefix(prefix): _plain(f) for k, f in self._reader.fields.items() if k.startswith(prefix)}

    def config(self) -> dict[str, Any]:
        """The file's settings as a Hugging Face config of its family."""
        if self._layout is None:
            raise InputError(f"{self.path}: its layers may differ, which no config of Hugging Face tells")
        config = config_of(self.family, self._layout, self._fields(), self._values, self._vocab_size)
        ends = self.eos_ids()
        if ends:
            config["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
        for ours, theirs, default in (("bos", "bos", 0), ("pad", "padding", ends[0] if ends else 0)):
            config[f"{ours}_token_id"] = self._get(f"tokenizer.ggml.{theirs}_token_id", default)
        return config

    def spec(self) -> ModelSpec:
        """The specification of the file's model."""
        if self._layout is None:
            return unequal.read_spec(self._fields(), self._values, self._vocab_size)
        return self.family.spec_from_config(self.config())

    def stored(self, dtype: torch.dtype | None = None) -> StoredWeights:
        """The weights of the decoder, de-quantised tensor by tensor, in ``dtype`` or fp32.

        The tensors of layers that may differ are all held.
        """
        spec = self.spec()
        if self._layout is not None:
            state = read_weights(self.family.rules(spec), spec, self.weights(), dtype)
            return StoredWeights(spec, state, self.path)
        names = track(list(self._names()), "De-quantising", len(self._tensors))
        tensors = {name: self._tensor(name).to(dtype or torch.float32) for name in names}
        return StoredWeights(spec, dict(unequal.read_state(spec, tensors)), self.path)

    @property
    def _vocab_size(self) -> int:
        return int(self._tensors[EMBEDDING].shape[1])

    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, a turn or a message."""
        keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
        return tuple(dict.fromkeys(int(self._get(key)) for key in keys if key in self._reader.fields))

    def description(self) -> str:
        """What the file's name may leave out: that its weights are rounded ones, most used type first."""
        kinds = Counter(tensor.tensor_type.name for tensor in self._tensors.values())
        rounded = [kind for kind, _ in kinds.most_common() if kind not in ("F64", "F32", "F16", "BF16")]
        return f"de-quantised from {' and '.join(rounded)}" if rounded else ""

    def _values(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Rows of a tensor in fp32 [out, in]; read and not mapped, since what is mapped counts as memory."""
        tensor = self._tensors[name]
        shape = self._shape(name)
        start, stop, _ = rows.indices(shape[0])
        width = tensor.data.nbytes // max(1, shape[0])  # bytes of a row
        kind, n_byte = tensor.data.dtype, max(0, stop - start) * width
        place = int(tensor.data_offset) + start * width
        data: NDArray[Any] = np.fromfile(self.path, kind, n_byte // kind.itemsize, offset=place)
        try:
            shaped: NDArray[Any] = np.reshape(data, (-1, width // kind.itemsize))
            flat = gguf.dequantize(shaped, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}, which can't be de-quantised"
            ) from error
        return np.reshape(np.array(flat, dtype=np.float32), [stop - start, *shape[1:]])

    def _shape(self, name: str) -> tuple[int, ...]:
        """[out, in]."""
        return tuple(int(n) for n in reversed(self._tensors[name].shape.tolist()))

    def stored_dtype(self) -> torch.dtype:
        """The type that most of the weights are stored in: a half, or fp32, as de-quantised ones are."""
        counts: Counter[str] = Counter()
        for tensor in self._tensors.values():
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
        return {"BF16": torch.bfloat16, "F16": torch.float16}.get(counts.most_common(1)[0][0], torch.float32)

    def weights(self) -> Stored:
        """All tensors in fp32 under Hugging Face's names, to be de-quantised; a bias that only some projections have is 0
        in others."""
        spec, layout = self.spec(), self._layout
        assert layout is not None  # or there would be no such names
        state: Stored = {}
        for name in self._names():
            state[self._name(layout, name)] = self._restored(layout, name, spec)
        for theirs, rows in list(self._lacking_biases(layout, state)):
            state[theirs] = torch.zeros(rows, device="cpu")
        return state

    def _names(self) -> Iterable[str]:
        """Of all weights."""
        return (name for name in self._tensors if name not in ROPE_TENSORS)

    def _name(self, layout: GGUFLayout, name: str) -> str:
        """Hugging Face's name of a tensor."""
        layer, kind, part = _parts(name)
        module = layout.tensors.get(kind)
        if module is None or part not in ("weight", "bias") or (layer is None) == ("{i}" in module):
            raise InputError(f"{self.path}: GGUF tensor {name!r} is not supported")
        return f"{module.format(i=layer)}.{part}"

    def _tensor(self, name: str, rows: slice = ALL) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(self._values(name, rows)), device="cpu")

    def _restored(self, layout: GGUFLayout, name: str, spec: ModelSpec) -> Unread:
        """A tensor as the family has it; rows of it alone can be read where the converter leaves them as they are."""
        layer, kind, _ = _parts(name)
        conversion, shape = layout.conversions.get(kind), self._shape(name)
        if conversion is None:
            return Unread(shape, torch.float32, functools.partial(self._tensor, name))
        index = 0 if layer is None else int(layer)
        turned = conversion is IN_OUT and len(shape) > 1

        def read(rows: slice) -> Tensor:
            try:
                return conversion.read(self._tensor(name), spec.layers[index])[rows]
            except (RuntimeError, IndexError) as error:
                raise InputError(
                    f"{self.path}: GGUF tensor {name!r} does not fit the heads of layer {index}"
                ) from error

        return Unread(shape[::-1] if turned else shape, torch.float32, read)

    def _lacking_biases(self, layout: GGUFLayout, state: Stored) -> Iterator[tuple[str, int]]:
        """Names and rows of the biases that only other projections have."""
        for kinds in layout.biases.values():
            if not has_bias(self._fields(), kinds):
                continue
            for name in self._tensors:
                _, kind, part = _parts(name)
                if kind in kinds and part == "weight":
                    theirs = self._name(layout, name)
                    bias = theirs.removesuffix("weight") + "bias"
                    if bias not in state:
                        yield bias, state[theirs].shape[0]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer stored in the file, None where it says that there is none."""
        return None if self._get("tokenizer.ggml.model") == "none" else build_tokenizer(self._get, self.path)

    def text_tokenizer(self) -> TextTokenizer | None:
        """The same with the ids that end a text, special tokens and chat template."""
        found = self.tokenizer()
        return None if found is None else TextTokenizer(found, self.eos_ids(), settings=self.tokenizer_config())

    def tokenizer_config(self) -> dict[str, Any]:
        """What Hugging Face's ``tokenizer_config.json`` says of the tokenizer."""
        tokens = self._get("tokenizer.ggml.tokens")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = self._reader.fields.get(f"tokenizer.ggml.{theirs}_token_id")
            if index is not None and 0 <= index.contents() < len(tokens):
                config[f"{ours}_token"] = tokens[index.contents()]
        template = self._reader.fields.get("tokenizer.chat_template")
        if template is not None:
            config["chat_template"] = template.contents()
        config["model_max_length"] = self._get(f"{self.architecture}.context_length")
        return config


def _plain(field: Any) -> Any:
    """The value of a field; a number that was rounded to fp32 as the shortest one that rounds to it."""
    value = field.contents()
    return float(str(np.float32(value))) if field.types == [gguf.GGUFValueType.FLOAT32] else value


def _parts(name: str) -> tuple[str | None, str, str]:
    """Layer, kind and part of a tensor: "blk.3.attn_q.weight" or "output.weight"."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4:
        return parts[1], parts[2], parts[3]
    return (None, parts[0], parts[1]) if len(parts) == 2 else (None, name, "")
