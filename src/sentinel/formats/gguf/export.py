"""Writes a decoder as a GGUF file for llama.cpp, with its tokenizer.

Equal layers go into the family's own architecture (`equal`), unequal ones into the one whose layers may differ (`unequal`)
or, where that lacks a feature of the model, into the family's, filled up with zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.files import write_file
from sentinel.formats.gguf import equal, unequal
from sentinel.formats.gguf.config import EMBEDDING, HEAD
from sentinel.formats.gguf.held import Held
from sentinel.formats.gguf.tokenizer_fields import tokenizer_fields
from sentinel.models.decoder import Decoder
from sentinel.models.tokenizer import TextTokenizer
from sentinel.progress import track

__all__ = ["PRECISIONS", "SUPPORTS", "write_gguf"]

Kind = gguf.GGMLQuantizationType
PRECISIONS = {
    "fp32": Kind.F32,
    "fp16": Kind.F16,
    "bf16": Kind.BF16,
    "q8_0": Kind.Q8_0,
    "q4_1": Kind.Q4_1,
    "q4_0": Kind.Q4_0,
}
_ENDS = {Kind.Q4_1: Kind.Q8_0, Kind.Q4_0: Kind.Q8_0}  # of embeddings and LM head, where not as the rest
FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
SUPPORTS = equal.SUPPORTS | unequal.SUPPORTS  # what one architecture or other has


def write_gguf(decoder: Decoder, tokenizer: TextTokenizer | None, path: str | Path, precision: str) -> int:
    """Write ``decoder`` to the file ``path`` with matrices of ``precision`` (of `PRECISIONS`); returns the bytes of weights
    that one decoded token reads.

    Embeddings and LM head of the 4-bit ones are Q8_0. Vectors stay in fp32, and so do matrices whose rows do not divide
    into blocks of 32; neurons are filled up with zeros to whole blocks. Without a tokenizer token ids go in and come out.
    Gates and scales become part of the weights. Raises `InputError` for what no architecture of llama.cpp has, and for a
    tokenizer that a file can't hold, by name.
    """
    if precision not in PRECISIONS:
        raise InputError(f"GGUF files are not written in precision {precision!r} ({', '.join(PRECISIONS)} are)")
    kind = PRECISIONS[precision]
    made = _held(decoder, gguf.GGML_QUANT_SIZES[kind][0])
    words = tokenizer_fields(tokenizer, decoder.spec.vocab_size)
    with write_file(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), made.architecture)
        try:
            writer.add_file_type(FILE_TYPES[precision])
            if kind in (Kind.Q8_0, Kind.Q4_1, Kind.Q4_0):
                writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_fields(writer, {f"{made.architecture}.{name}": value for name, value in made.fields.items()} | words)
            return _write(writer, made, kind)
        finally:
            writer.close()


def _held(decoder: Decoder, block: int) -> Held:
    """The model in the first architecture that has it; else what its family's lacks is told."""
    spec = decoder.spec
    state = {name: tensor.detach() for name, tensor in decoder.whole_state().items()}
    ways = (
        lambda: equal.held(spec, state, block, pad=False),
        lambda: unequal.held(spec, state, block),
        lambda: equal.held(spec, state, block, pad=True),
    )
    for way in ways[:-1]:
        try:
            return way()
        except InputError:
            continue
    return ways[-1]()


def _add_fields(writer: gguf.GGUFWriter, fields: dict[str, Any]) -> None:
    """Fields by their full names, of the type that their values have."""
    adders: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in fields.items():
        adders[type(value)](name, value)


def _write(writer: gguf.GGUFWriter, made: Held, kind: Kind) -> int:
    """Write all of the file, of which one tensor at a time is in memory; returns the bytes that one token reads."""
    streamed = 0
    shapes = [(name, tuple(tensor.shape)) for name, tensor in made.shapes()]
    for name, shape in shapes:
        stored = _kind_of(name, shape, kind)
        size = quant_shape_to_byte_shape(shape, stored)
        nbytes = int(np.prod(size))
        writer.add_tensor_info(name, size, np.dtype(np.uint8), nbytes, raw_dtype=stored)
        looked_up = name == "position_embd.weight" or (name == EMBEDDING and not made.spec.tied_head)
        streamed += nbytes // shape[0] if looked_up else nbytes
    for name, array in made.extra.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in track(made.tensors(made.state), "Writing", len(shapes)):
        array = tensor.float().cpu().numpy()
        assert (name, array.shape) == shapes.pop(0)
        writer.write_tensor_data(_stored(array, _kind_of(name, array.shape, kind)))
    for array in made.extra.values():
        writer.write_tensor_data(array)
    return streamed


def _kind_of(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    if name in (EMBEDDING, HEAD):
        kind = _ENDS.get(kind, kind)
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return Kind.F32 if len(shape) == 1 or shape[-1] % block else kind


def _stored(array: NDArray[np.float32], kind: Kind) -> NDArray[Any]:
    return np.ascontiguousarray(gguf.quantize(np.ascontiguousarray(array), kind))
