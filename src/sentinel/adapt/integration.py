"""Give a model U-Net skips and baseline integration, or take them off again.

Full rank reproduces the growth of the original report, in which every layer had one fusion Linear(2C -> C) with bias
beside its gates: GPT-2 124.4M -> 138.7M, GPT-2 Medium 354.8M -> 405.5M. Here half of these fusions are the skips, one per
pair of layers, and half the adapters of the baseline, one per layer of the second half.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sentinel.errors import InputError
from sentinel.formats.checkpoint import build
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import require_fp32
from sentinel.models.spec import IntegrationSpec, ModelSpec

State = dict[str, Tensor]
DEFAULT_RANK = 16
PARTS = ("integration.", "baseline.")  # where their weights stand in a decoder's state


@dataclass(frozen=True)
class Configuration:
    """A row of the integration table: which features there are; ``head_by_head``: the reference, at level 0."""

    name: str
    skips: bool
    baseline: bool
    description: str
    head_by_head: bool = False


CONFIGURATIONS = {
    row.name: row
    for row in (
        Configuration("original", False, False, "the plain model, computed head by head (level 0)", head_by_head=True),
        Configuration("all", True, True, "U-Net skips and baseline integration"),
        Configuration("no-baseline", True, False, "U-Net skips alone"),
        Configuration("no-unet", False, True, "baseline integration alone"),
        Configuration("minimal", False, False, "the plain model, optimised"),
    )
}


def configuration_of(name: str) -> Configuration:
    """The configuration of that name; `InputError` names them all."""
    if name not in CONFIGURATIONS:
        raise InputError(f"configuration {name!r} is not known; there are {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[name]


def integrate(
    decoder: Decoder,
    configuration: str = "all",
    *,
    rank: int | None = DEFAULT_RANK,
    baseline: Decoder | None = None,
    seed: int = 0,
) -> Decoder:
    """``decoder`` with the features of a configuration, still the same function: what is new adds exactly zero.

    ``rank`` is that of the fusions, None is full rank. ``baseline`` is the unpruned model, by default ``decoder`` itself
    as it is now; it is copied and frozen. The other weights are shared with ``decoder``. An elastic model stays elastic.
    "original" and "minimal" are both the plain model: a model that has features loses them. Raises `InputError` for an
    unknown configuration, a rank that the model can't have, a baseline that does not fit, and features twice.
    """
    wanted = configuration_of(configuration)
    if not (wanted.skips or wanted.baseline):
        return plain(decoder)
    if decoder.spec.integration is not None:
        raise InputError("this model has skips or a baseline already; take them off with configuration minimal first")
    unpruned = decoder if baseline is None else baseline
    for model in (decoder, unpruned):
        require_fp32(model, "integration")
    frozen = baseline_spec(unpruned) if wanted.baseline else None
    spec = dataclasses.replace(decoder.spec, integration=IntegrationSpec(wanted.skips, frozen, rank))
    state = {**_state(decoder), **fresh_fusions(spec, seed, decoder)}
    if frozen is not None:
        state.update(_baseline_state(_state(unpruned), frozen.n_layer))
    return _like(decoder, spec, state)


def plain(decoder: Decoder) -> Decoder:
    """``decoder`` without skips and baseline; ``decoder`` itself when it has none. Weights are shared."""
    if decoder.spec.integration is None:
        return decoder
    state = {name: tensor for name, tensor in _state(decoder).items() if not name.startswith(PARTS)}
    return _like(decoder, dataclasses.replace(decoder.spec, integration=None), state)


def require_plain(decoder: Decoder, what: str) -> None:
    """Refuse what goes through the layers one by one and does not know of skips and baselines."""
    if decoder.spec.integration is not None:
        raise InputError(
            f"{what} needs a model without skips and baseline; prune first, then 'sentinel integrate' the result"
        )


def baseline_spec(unpruned: Decoder) -> ModelSpec:
    """Specification of the baseline that ``unpruned`` gives: without the last layer and the LM head."""
    spec = unpruned.spec
    if spec.integration is not None:
        raise InputError("the baseline has skips or a baseline of its own; give a plain model")
    if spec.n_layer < 2:
        raise InputError("an integration needs a model of at least two layers")
    return dataclasses.replace(spec, layers=spec.layers[:-1], tied_head=True, head_bias=False)


def fresh_fusions(spec: ModelSpec, seed: int, like: Decoder) -> State:
    """Weights of new fusions: zero where they end, so that they add nothing, and random where they start.

    The random ones have a variance of 1 / (2C), so that the low-rank states start with a variance of 1.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    state: State = {}
    for name, tensor in Decoder.empty(spec).state_dict().items():
        if not name.startswith("integration."):
            continue
        if ".down." in name:
            value = torch.randn(tensor.shape, generator=generator, device="cpu") / tensor.shape[1] ** 0.5
        elif ".up." in name or name.endswith("bias"):
            value = torch.zeros(tensor.shape, device="cpu")
        else:  # norms and gates
            value = torch.ones(tensor.shape, device="cpu")
        state[name] = value.to(like.device, like.embed.weight.dtype)
    return state


def _state(decoder: Decoder) -> State:
    return {name: tensor.detach() for name, tensor in decoder.whole_state().items()}


def _baseline_state(unpruned: State, n_layer: int) -> State:
    """Copies, so that training the model does not change its baseline."""
    left_out = ("lm_head.", f"layers.{n_layer}.")
    return {f"baseline.{name}": t.clone() for name, t in unpruned.items() if not name.startswith(left_out)}


def _like(decoder: Decoder, spec: ModelSpec, state: State) -> Decoder:
    """A decoder of that state, with the stored widths of ``decoder``."""
    made = build(spec, state, "the integrated model")
    made.record = decoder.record
    made.store_widths(decoder.widths)
    if decoder.current is not None:
        made.set_width(decoder.current.heads, decoder.current.neurons)
    return made
