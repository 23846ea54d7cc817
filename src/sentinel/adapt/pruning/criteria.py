"""Importance criteria: one function each, from a model and its calibration to `Scores`.

A group is a key/value head with its query heads; in plain multi-head attention it is one head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sentinel.adapt.pruning.calibrate import Calibration
from sentinel.adapt.pruning.plan import Scores
from sentinel.adapt.pruning.residual_stream import device_of_float64
from sentinel.errors import InputError
from sentinel.models.decoder import Decoder
from sentinel.models.tensors import Unit, by_unit, pruned_tensors
from sentinel.progress import track

Values = tuple[NDArray[np.float64], ...]
GRAM_RIDGE = 1e-4  # of the mean diagonal, so that inputs that are never active can be inverted


def random(decoder: Decoder, seed: int) -> Scores:
    """Uniform noise: what a criterion has to beat."""
    rng = np.random.default_rng(seed)
    layers = decoder.spec.layers
    return Scores(
        "random",
        tuple(rng.random(layer.n_kv_head) for layer in layers),
        tuple(rng.random(layer.intermediate_size) for layer in layers),
    )


def magnitude(decoder: Decoder) -> Scores:
    """Frobenius norm of all weights of a unit: its rows of the input projections and columns of the output projection."""
    state, layers = decoder.state_dict(), decoder.spec.layers
    squares: dict[Unit, list[Tensor]] = {
        "groups": [torch.zeros(layer.n_kv_head, device=decoder.device) for layer in layers],
        "neurons": [torch.zeros(layer.intermediate_size, device=decoder.device) for layer in layers],
    }
    for tensor in pruned_tensors(decoder.spec):
        if tensor.layer is not None and tensor.unit is not None and tensor.name.endswith(".weight"):
            others = [axis for axis in range(3) if axis != tensor.axis]
            squares[tensor.unit][tensor.layer] += by_unit(state[tensor.name], tensor).square().sum(others)
    groups, neurons = ([_numpy(sums.sqrt()) for sums in squares[unit]] for unit in ("groups", "neurons"))
    return Scores("magnitude", tuple(groups), tuple(neurons))


def entropy(calibration: Calibration) -> Scores:
    """Heads whose attention is spread out go first; neurons are not scored (all the same)."""
    layers = range(calibration.spec.n_layer)
    return Scores(
        "entropy",
        tuple(-_numpy(calibration.of_layer("entropy", i)) for i in layers),
        tuple(np.zeros(layer.intermediate_size) for layer in calibration.spec.layers),
    )


def gradient(calibration: Calibration) -> Scores:
    """Mean absolute gradient of the loss by a unit's gate (Michel et al. 2019, "Are Sixteen Heads Really Better than
    One?", eq. 2)."""
    return _from_sums("gradient", calibration)


def fisher(calibration: Calibration) -> Scores:
    """Mean squared gradient by a unit's gate: the diagonal of the empirical Fisher information (Kwon et al. 2022, "A Fast
    Post-Training Pruning Framework for Transformers")."""
    return _from_sums("fisher", calibration)


def reconstruction(decoder: Decoder, calibration: Calibration, neurons: bool) -> Scores:
    """Greedy removal by the error that is left after the exact re-solve of the rest, from the Gram matrix.

    Removing block u of the output projection W and re-solving the others costs tr(W_u P_uu^-1 W_u'), P being the inverse
    Gram matrix (optimal brain surgeon, Hassibi and Stork 1993; per head as in OSSCAR, Meng et al. 2024). A unit's score
    is the layer's accumulated error when it goes, relative to the layer's output. Neurons are scored (else all the same)
    only where ``neurons`` is true, since they take by far the most time.
    """
    of_groups, of_neurons = [], []
    layers = list(zip(decoder.blocks, decoder.spec.layers, strict=True))
    for index, (block, layer) in enumerate(track(layers, "Ranking by reconstruction", len(layers))):
        unit = layer.group_size * layer.head_dim
        gram, out = calibration.of_layer("attn_gram", index), block.attn.out_proj.weight.detach()
        of_groups.append(_greedy(gram, out, unit, layer.n_kv_head))
        gram, down = calibration.of_layer("mlp_gram", index), block.mlp.down_proj.weight.detach()
        count = layer.intermediate_size
        of_neurons.append(_greedy(gram, down, 1, count) if neurons else np.zeros(count))
    return Scores("reconstruction", tuple(of_groups), tuple(of_neurons))


def _greedy(gram: Tensor, weight: Tensor, unit: int, count: int) -> NDArray[np.float64]:
    scores = np.zeros(count)
    if count == 0:
        return scores
    size = len(gram)
    device = device_of_float64(gram.device)
    matrix = gram.to(device).double()
    matrix += torch.eye(size, dtype=torch.float64, device=device) * matrix.diagonal().mean() * GRAM_RIDGE
    w = weight.to(device).double().clone()
    output = float((w @ matrix * w).sum())
    inverse = torch.linalg.inv(matrix)
    alive = torch.ones(count, dtype=torch.bool, device=device)
    error = 0.0
    for _ in range(count):
        costs = _removal_costs(w, inverse, unit, count)
        costs[~alive] = torch.inf
        gone = int(costs.argmin())
        error += max(0.0, float(costs[gone]))
        scores[gone] = error / output
        columns = slice(gone * unit, (gone + 1) * unit)
        step = torch.linalg.solve(inverse[columns, columns], inverse[columns])
        w.addmm_(w[:, columns].clone(), step, alpha=-1)
        inverse.addmm_(inverse[:, columns].clone(), step, alpha=-1)
        inverse[columns, :], inverse[:, columns], w[:, columns] = 0.0, 0.0, 0.0
        inverse[columns, columns] = torch.eye(unit, dtype=torch.float64, device=device)
        alive[gone] = False
    return scores


def _removal_costs(w: Tensor, inverse: Tensor, unit: int, count: int) -> Tensor:
    """Error [count] of removing each block and re-solving the rest."""
    if unit == 1:
        return w.square().sum(0) / inverse.diagonal()
    blocks = torch.stack([inverse[i * unit : (i + 1) * unit, i * unit : (i + 1) * unit] for i in range(count)])
    parts = w.T.reshape(count, unit, -1)
    return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))


@dataclass(frozen=True)
class Criterion:
    """How to get the scores: from the weights alone, or from calibration statistics too.

    ``scores`` takes model, calibration, seed, and whether neurons are wanted as well as heads.
    """

    scores: Callable[[Decoder, Calibration | None, int, bool], Scores]
    needs_calibration: bool
    scores_neurons: bool = True


def _needs(calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise InputError("this criterion needs calibration text")
    return calibration


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(lambda decoder, _c, seed, _n: random(decoder, seed), False),
    "magnitude": Criterion(lambda decoder, _c, _s, _n: magnitude(decoder), False),
    "entropy": Criterion(lambda _d, calibration, _s, _n: entropy(_needs(calibration)), True, scores_neurons=False),
    "gradient": Criterion(lambda _d, calibration, _s, _n: gradient(_needs(calibration)), True),
    "fisher": Criterion(lambda _d, calibration, _s, _n: fisher(_needs(calibration)), True),
    "reconstruction": Criterion(lambda d, calibration, _s, n: reconstruction(d, _needs(calibration), n), True),
}


def _from_sums(kind: str, calibration: Calibration) -> Scores:
    layers, tokens = range(calibration.spec.n_layer), max(1, calibration.tokens)
    return Scores(
        kind,
        tuple(_numpy(calibration.of_layer(f"group_{kind}", i)) / tokens for i in layers),
        tuple(_numpy(calibration.of_layer(f"neuron_{kind}", i)) / tokens for i in layers),
    )


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().double().numpy()
