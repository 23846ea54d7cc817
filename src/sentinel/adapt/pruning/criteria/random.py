"""Chance: what a criterion has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sentinel.adapt.pruning.criterion import HalfCriterion
from sentinel.adapt.pruning.half_layer import HalfLayer


class Random(HalfCriterion):
    """Uniform noise: one stream of it, for the heads of all layers and then for their neurons."""

    name = "random"
    needs_text = False

    def of_half(self, part: HalfLayer) -> NDArray[np.float64]:
        layers = part.spec.layers
        counts = [*(layer.n_kv_head for layer in layers), *(layer.intermediate_size for layer in layers)]
        place = part.index if part.half == "attn" else part.index + len(layers)
        before = sum(counts[:place])
        return np.random.default_rng(part.seed).random(before + counts[place])[before:]
