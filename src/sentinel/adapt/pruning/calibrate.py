"""One streamed pass over text that keeps what the importance criteria need.

Per layer: the Gram matrices at the inputs of both output projections, gate gradients of heads and neurons (first order
and squared), and the entropy of attention. Memory does not grow with the text: 4 bytes x (K^2 + F^2) per layer for the
Gram matrices of K = n_head x head_dim and F = intermediate_size inputs, and the activations of one batch.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from sentinel.adapt.pruning.attention_entropy import AttentionEntropy
from sentinel.adapt.pruning.digest import digests
from sentinel.adapt.pruning.gradients import LayerProbe, probe
from sentinel.adapt.pruning.gram_matrices import gram_of
from sentinel.adapt.pruning.residual_stream import Half
from sentinel.adapt.pruning.statistics import Calibration, LayerStatistics, read_statistics, write_statistics
from sentinel.adapt.text.corpora import Windows
from sentinel.models.decoder import Decoder
from sentinel.models.dtypes import require_fp32
from sentinel.progress import track

BATCH = 2
SAVE_EVERY_SECONDS = 60.0


def calibrate(decoder: Decoder, windows: Windows, statistics_file: Path | None = None) -> Calibration:
    """Statistics of ``decoder`` over the calibration windows.

    With ``statistics_file`` the sums are saved about once a minute and at the end, and a file of the same model and
    windows is taken up where it ended. The result does not depend on interruptions. Raises `InputError` for NaN, naming
    the layer, and for a statistics file of something else.
    """
    require_fp32(decoder, "calibration")
    identity, *earlier = _identities(decoder, windows)
    found = Calibration.empty(decoder.spec, windows.fingerprints, decoder.device)
    if statistics_file is not None and statistics_file.exists():
        found = read_statistics(statistics_file, found, (identity, *earlier))
    length = windows.tokens.shape[1]
    left = windows.tokens[found.tokens // length :]
    entropies = AttentionEntropy(decoder, length)
    saved = time.monotonic()
    batches = -(-len(left) // BATCH)
    parts = left.split(BATCH)[:batches]  # of nothing, split gives one part
    pairs = zip(parts, probe(decoder, left, labels="text", batch=BATCH) if batches else (), strict=True)
    for tokens, layers in track(pairs, "Calibrating", batches):
        for (index, half), layer in layers.items():
            _add(found.layers[index], half, layer, len(tokens))
        for index, entropy in entropies.of(tokens).items():
            found.layers[index].entropy.add_(entropy * len(tokens))
        found.tokens += tokens.numel()
        if statistics_file is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
            write_statistics(found, statistics_file, identity)
            saved = time.monotonic()
    if statistics_file is not None:
        write_statistics(found, statistics_file, identity)
    return found


def _add(sums: LayerStatistics, half: Half, layer: LayerProbe, windows: int) -> None:
    """Add what a probe of ``windows`` windows found of one half layer."""
    effect = layer.inputs * layer.gradients  # of the gate of each input, per token
    if half == "attn":
        effect = effect.unflatten(1, (len(sums.entropy), -1)).sum(2)
        gram, gradient, fisher = sums.attn_gram, sums.group_gradient, sums.group_fisher
    else:
        gram, gradient, fisher = sums.mlp_gram, sums.neuron_gradient, sums.neuron_fisher
    gram.add_(gram_of(layer.inputs))
    gradient.add_(effect.unflatten(0, (windows, -1)).sum(1).abs().sum(0))
    fisher.add_(effect.square().sum(0))


def _identities(decoder: Decoder, windows: Windows) -> list[str]:
    """Names of the statistics of that model and text: the one to write, and those of earlier versions."""
    found = []
    for shape in digests(decoder.spec):
        digest = hashlib.sha256(shape.encode())
        digest.update(windows.tokens.cpu().numpy().tobytes())
        for name, tensor in decoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.flatten()[:: max(1, tensor.numel() // 64)].cpu().numpy().tobytes())
        found.append(digest.hexdigest()[:24])
    return found
