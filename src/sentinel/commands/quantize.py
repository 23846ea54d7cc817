"""``sentinel quantize``: write a checkpoint that level 3 runs without torch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_model,
    add_output,
    check_model_output,
    load_model,
    set_pruning_level,
    whole_number,
)
from sentinel.commands.pruning import DEFAULT_TEXT, ratio
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.adapt.corpora import Windows
    from sentinel.infer.native import NativeWeights
    from sentinel.infer.quantised import StoredLevel
    from sentinel.models.decoder import Decoder
    from sentinel.models.sources import LoadedModel

DEFAULT_TOKENS = 16_384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_output(parser)
    parser.add_argument("--precision", choices=("int8", "int4"), default="int8", help="default int8")
    parser.add_argument(
        "--heads",
        metavar="R",
        type=ratio,
        default=0.0,
        help="only this stored level of an elastic model (default: all of them, to be chosen when it is run)",
    )
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="likewise")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--calibration",
        metavar="TEXT",
        help="of int4: text files, folders or built-in texts, with commas between; rounding errors are made up for on "
        f"it (GPTQ, damping 1 %% of the mean diagonal). Default {DEFAULT_TEXT}: their train splits",
    )
    texts.add_argument("--no-calibration", action="store_true", help="of int4: round each weight for itself")
    parser.add_argument(
        "--calibration-tokens", metavar="N", type=whole_number(1), help=f"of int4: default {DEFAULT_TOKENS}"
    )


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.quantised import save_quantised
    from sentinel.models.elastic import at_current_level
    from sentinel.models.record import Quantised

    if options.precision == "int8" and (options.calibration or options.calibration_tokens or options.no_calibration):
        raise InputError("int8 needs no calibration; leave the calibration options out, or ask for --precision int4")
    check_model_output(options.output, options.force, options.model)
    loaded = load_model(options)
    windows = calibration_windows(loaded, options)
    set_pruning_level(loaded.decoder, options.heads, options.neurons)
    weights, levels = quantised(at_current_level(loaded.decoder), options.precision, windows)
    step = Quantised(
        source=loaded.name,
        precision=options.precision,
        heads=options.heads,
        neurons=options.neurons,
        texts="" if windows is None else options.calibration or DEFAULT_TEXT,
        tokens=0 if windows is None else windows.tokens.numel(),
        documents=() if windows is None else windows.fingerprints,
    )
    save_quantised(weights, levels, options.output, loaded.tokenizer, loaded.record.then(step), force=options.force)
    before = loaded.spec.parameter_count() * 4
    stored = f", {len(levels)} pruning levels" if levels else ""
    print(
        f"{options.output}: {weights.n_byte / 1e6:,.1f} MB in {options.precision}{stored}, {before / 1e6:,.1f} MB in fp32"
    )


def calibration_windows(loaded: LoadedModel, options: argparse.Namespace) -> Windows | None:
    """The text that int4 is calibrated on; None for int8, ``--no-calibration`` and random weights."""
    from sentinel.adapt.corpora import load_texts, sample_windows
    from sentinel.progress import say

    if options.precision == "int8" or options.no_calibration:
        return None
    if loaded.weights == "random":
        say("random weights: int4 without calibration, since no text means anything to them")
        return None
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.name} has no tokenizer to calibrate with; give --no-calibration")
    texts = load_texts(options.calibration or DEFAULT_TEXT, "train")
    length = min(512, loaded.spec.max_seq_len)
    return sample_windows(texts, loaded.require_tokenizer(), options.calibration_tokens or DEFAULT_TOKENS, length)


def quantised(decoder: Decoder, precision: str, windows: Windows | None) -> tuple[NativeWeights, list[StoredLevel]]:
    """Packed weights of ``decoder`` and, if it is elastic, its stored pruning levels but the dense one."""
    from typing import cast

    from sentinel.adapt.grams import InputGrams
    from sentinel.infer.cpu_engine import pack, pack_level
    from sentinel.infer.native import Precision
    from sentinel.infer.quantised import StoredLevel
    from sentinel.models.elastic import ElasticDecoder
    from sentinel.progress import track

    kind = cast(Precision, precision)
    elastic = decoder if isinstance(decoder, ElasticDecoder) else None
    pruned = [level for level in elastic.levels if level.heads or level.neurons] if elastic is not None else []

    def grams() -> InputGrams | None:
        return None if windows is None else InputGrams(decoder, windows.tokens)

    weights = pack(decoder, kind, grams())
    stored = []
    for level in track(pruned, "Quantising pruning levels", len(pruned)):
        assert elastic is not None
        elastic.set_level(level.heads, level.neurons)
        stored.append(StoredLevel(level.heads, level.neurons, pack_level(elastic, kind, grams())))
    return weights, stored
