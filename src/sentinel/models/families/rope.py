"""Rotary settings of a Hugging Face config, and back."""

from __future__ import annotations

import math
from typing import Any, cast

from sentinel.errors import InputError
from sentinel.models.families.config import ConfigReader
from sentinel.models.layer_spec import RopeType
from sentinel.models.spec import RopeSpec

# What each type needs, by Hugging Face's names; "dynamic" is default within the context, beyond which nothing is read.
NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
MAY_HAVE: dict[str, tuple[str, ...]] = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
}
NAMES = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
KNOWN = {name for names in (*NEEDS.values(), *MAY_HAVE.values()) for name in names}


def read_rope(
    config: ConfigReader, context: int, head_dim: int, *, theta: float = 10000.0, partial: float = 1.0
) -> RopeSpec:
    """Rotary settings as Hugging Face derives them; ``theta`` and ``partial`` are the family's defaults.

    ``rope_parameters`` since transformers 5; ``rope_scaling``, which wins, and ``rope_theta`` before. The original length
    is the context where none is given; the other fields that a type needs must be there.
    """
    scaling, parameters = config.mapping("rope_scaling"), config.mapping("rope_parameters")
    given = dict(scaling or parameters or {})
    given.setdefault("rope_theta", config.number("rope_theta", theta))
    given.setdefault("partial_rotary_factor", config.number("partial_rotary_factor", partial))
    original = config.optional_integer("original_max_position_embeddings")
    if original is not None:
        given["original_max_position_embeddings"] = original
    return rope_from(config, given, context, head_dim)


def rope_from(config: ConfigReader, given: dict[str, Any], context: int, head_dim: int) -> RopeSpec:
    """Rotary settings of one object of fields, ``rope_theta`` among them."""
    left = dict(given)
    theta = config.checked_number("rope_theta", left.pop("rope_theta"))
    share = left.pop("partial_rotary_factor", None)
    share = 1.0 if share is None else config.checked_number("partial_rotary_factor", share)
    dim = int(head_dim * share)
    old_type = left.pop("type", None)
    kind: Any = left.pop("rope_type", old_type)
    if kind is None and set(left) - {"original_max_position_embeddings"}:
        raise InputError(f"{config.family} config: rope field {sorted(left)[0]!r} needs a rope_type")
    kind = "longrope" if kind == "su" else kind or "default"  # "su": its older name
    if not isinstance(kind, str) or kind not in NEEDS:
        raise InputError(f"{config.family} config: rope_type {kind!r} is not supported ({', '.join(NEEDS)} are)")
    if unknown := sorted(set(left) - KNOWN):
        raise InputError(f"{config.family} config: rope field {unknown[0]!r} is not supported")
    if kind != "default":
        left.setdefault("original_max_position_embeddings", context)
    for name in NEEDS[kind]:
        if left.get(name) is None and not (kind == "yarn" and name == "factor"):
            raise InputError(f"{config.family} config: rope_type {kind!r} needs the rope field {name!r}")
    settings = _settings(config, kind, left, context)
    if dim != head_dim:
        settings["dim"] = dim
    return RopeSpec(theta=theta, type=cast("RopeType", "default" if kind == "dynamic" else kind), **settings)


def _settings(config: ConfigReader, kind: str, left: dict[str, Any], context: int) -> dict[str, Any]:
    """Fields of `RopeSpec` beyond theta, type and dim."""
    wanted = (*NEEDS[kind], *MAY_HAVE.get(kind, ()))
    settings: dict[str, Any] = {
        NAMES[name]: config.checked_number(f"rope field {name}", left[name])
        for name in wanted
        if name in NAMES and left.get(name) is not None
    }
    if kind == "dynamic":
        return {}
    if kind == "yarn":
        settings.setdefault("factor", context / settings["original_max_seq_len"])
        settings["attention_factor"] = _yarn_attention(left, settings["factor"])
        return {**settings, "truncate": left.get("truncate") is not False}
    if kind == "longrope":
        original = settings["original_max_seq_len"]
        factor = settings.pop("factor", None) or context / original
        plain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        given = left.get("attention_factor")
        settings["attention_factor"] = plain if given is None else config.checked_number("attention_factor", given)
        for name in ("short_factor", "long_factor"):
            if not isinstance(left[name], (list, tuple)):
                raise InputError(f"{config.family} config: rope field {name} must be a list, not {left[name]!r}")
            settings[f"{name}s"] = tuple(left[name])
    return settings


def _yarn_attention(left: dict[str, Any], factor: float) -> float:
    """What cosines and sines are multiplied by (Peng et al. 2023, eq. 22)."""

    def scaled(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    if left.get("attention_factor") is not None:
        return float(left["attention_factor"])
    mscale, all_dim = left.get("mscale"), left.get("mscale_all_dim")
    return scaled(float(mscale)) / scaled(float(all_dim)) if mscale and all_dim else scaled(1.0)


def write_rope(rope: RopeSpec, head_dim: int) -> dict[str, Any]:
    """Inverse of `rope_from`: the value of ``rope_parameters``."""
    found: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    for name in (*NEEDS[rope.type], *MAY_HAVE.get(rope.type, ())):
        if name in NAMES and not (rope.type == "longrope" and name == "factor"):
            found[name] = getattr(rope, NAMES[name])
    if rope.type in ("yarn", "longrope"):
        found["attention_factor"] = rope.attention_factor
    if rope.type == "yarn":
        found["truncate"] = rope.truncate
    if rope.type == "longrope":
        found.update(short_factor=list(rope.short_factors), long_factor=list(rope.long_factors))
    if rope.dim is not None:
        found["partial_rotary_factor"] = rope.dim / head_dim
    return found
