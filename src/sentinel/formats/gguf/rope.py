"""The rotary settings of a GGUF file as Hugging Face's ``rope_parameters``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentinel.errors import InputError
from sentinel.models.families.gguf import GGUFFields
from sentinel.models.rotary import frequencies
from sentinel.models.spec import RopeSpec

FREQUENCIES = "rope_freqs.weight"  # divisors of the rotary frequencies [D / 2]: the llama3 scaling, written out
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # likewise, of longrope
TENSORS = (FREQUENCIES, LONG, SHORT)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of every published Llama 3; a file does not tell them
ORIGINAL = "rope.scaling.original_context_length"

# The values of a tensor of the file.
Values = Callable[[str], NDArray[np.float32]]


def rope_parameters(fields: GGUFFields, values: Values, head_dim: int, context: int, kind: str) -> dict[str, Any]:
    """Rotary settings of heads of that size, of which the "whole" or a "part" is turned; a factor without a type is
    linear, as in llama.cpp, and has an older name."""
    dim = fields.count("rope.dimension_count", head_dim)
    if (kind == "whole" and dim != head_dim) or dim > head_dim:
        raise fields.refuse("rope.dimension_count", f"other than the head size {head_dim} is not supported")
    found = _scaling(fields, values, dim, context)
    return found if kind == "whole" else {**found, "partial_rotary_factor": _share(dim, head_dim)}


def _share(dim: int, head_dim: int) -> float:
    """The float whose product with ``head_dim`` is not below ``dim``, since that is rounded down."""
    share = dim / head_dim
    return share if int(head_dim * share) == dim else math.nextafter(share, 1.0)


def _scaling(fields: GGUFFields, values: Values, dim: int, context: int) -> dict[str, Any]:
    theta, older = fields.number("rope.freq_base", 1e4), fields.number("rope.scale_linear", 0.0)
    factor = fields.number("rope.scaling.factor", 0.0) or older
    kind = fields.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise InputError(
            f"{fields.path}: rotary scaling {kind!r} is not supported (none, linear, yarn and longrope are)"
        )
    if LONG in fields.tensors or SHORT in fields.tensors or kind == "longrope":
        return {**_longrope(fields, values, context), "rope_theta": theta}
    if kind == "yarn":
        return {**_yarn(fields, factor, context), "rope_theta": theta}
    linear = kind == "linear" and factor not in (0.0, 1.0)
    if FREQUENCIES in fields.tensors:
        if linear:
            raise InputError(f"{fields.path}: tensor {FREQUENCIES!r} beside a linear rotary scaling is not supported")
        return _llama3(fields, values(FREQUENCIES), theta, dim)
    scaling = {"rope_type": "linear", "factor": factor} if linear else {"rope_type": "default"}
    return {**scaling, "rope_theta": theta}


def _longrope(fields: GGUFFields, values: Values, context: int) -> dict[str, Any]:
    if missing := [name for name in (LONG, SHORT) if name not in fields.tensors]:
        raise InputError(f"{fields.path}: of the tensors {LONG!r} and {SHORT!r}, {missing[0]!r} is missing")
    long, short = ([float(str(value)) for value in values(name).ravel()] for name in (LONG, SHORT))
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": fields.count(ORIGINAL, context),
        "attention_factor": fields.number("rope.scaling.attn_factor", 1.0),
    }


def _yarn(fields: GGUFFields, factor: float, context: int) -> dict[str, Any]:
    """llama.cpp multiplies cosines and sines by 1 + 0.1 ln(factor) too, beyond which nothing may ask for more."""
    if not factor:
        raise fields.refuse("rope.scaling.factor", "is missing, which the rotary scaling 'yarn' needs")
    for name in ("yarn_ext_factor", "yarn_attn_factor"):
        fields.only(f"rope.scaling.{name}", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.count(ORIGINAL, context),
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3(fields: GGUFFields, listed: NDArray[np.float32], theta: float, dim: int) -> dict[str, Any]:
    """The settings whose frequencies are those that the file lists."""
    divisors = listed.astype(np.float64).ravel()
    plain = frequencies(RopeSpec(theta), dim).astype(np.float64)
    if divisors.shape != plain.shape or not (divisors > 0).all():
        raise InputError(f"{fields.path}: tensor {FREQUENCIES!r} does not fit heads of size {dim}")
    if (divisors == 1).all():
        return {"rope_type": "default", "rope_theta": theta}
    low, high, factor = *LLAMA3.values(), float(divisors.max())
    between = (divisors > 1) & (divisors < factor)
    smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    solved = np.round(2 * np.pi / plain[between] * (smooth * (high - low) + low)).astype(int)
    for length in (fields.count(ORIGINAL, 8192), 8192, *solved.tolist()):
        spec = RopeSpec(
            theta,
            "llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_seq_len=length,
        )
        if np.allclose(frequencies(spec, dim).astype(np.float64), plain / divisors, rtol=1e-4):
            settings = {"rope_type": "llama3", "factor": factor, **LLAMA3, "rope_theta": theta}
            return {**settings, "original_max_position_embeddings": int(length)}
    raise InputError(f"{fields.path}: tensor {FREQUENCIES!r} is not the scaling of Llama 3, the only one supported")


def rope_fields(rope: RopeSpec, head_dim: int) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Inverse of `rope_parameters`: fields and tensors of a file. What a file can't tell of them is left out."""
    dim = rope.dim_of(head_dim)
    found: dict[str, Any] = {"rope.dimension_count": dim, "rope.freq_base": rope.theta}
    if rope.type == "default":
        return found, {}
    found[ORIGINAL] = rope.original_max_seq_len
    if rope.type == "llama3":  # llama.cpp goes by the tensor alone; readers of it by the field too
        plain = frequencies(RopeSpec(rope.theta), dim)
        return found, {FREQUENCIES: (plain / frequencies(replace(rope, dim=None), dim)).astype(np.float32)}
    found["rope.scaling.type"] = rope.type
    if rope.type == "longrope":
        found["rope.scaling.attn_factor"] = rope.attention_factor
        return found, {
            LONG: np.array(rope.long_factors, np.float32),
            SHORT: np.array(rope.short_factors, np.float32),
        }
    found["rope.scaling.factor"] = rope.factor
    return found, {}
