"""``sentinel bench``: measure one suite and print its table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_machine,
    add_model,
    add_workload,
    check_workload,
    listed,
    load_model,
    whole_number,
)
from sentinel.commands.pruning import DEFAULT_TEXT, ratios

if TYPE_CHECKING:
    from sentinel.measure.bench import DecodeSettings
    from sentinel.measure.results import Result
    from sentinel.models.sources import LoadedModel

SUITES = ("attention", "decode", "quality")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", choices=SUITES, help=", ".join(SUITES))
    add_model(parser, default="smollm2-135m")
    add_workload(parser)
    parser.add_argument(
        "--levels", metavar="L,L", type=listed(whole_number(0)), default=(0, 1, 2, 3), help="default 0,1,2,3"
    )
    parser.add_argument("--precision", metavar="P,P", default="int8", help="of level 3: int8 (default), int4, or both")
    parser.add_argument(
        "--lengths",
        metavar="N,N",
        type=listed(whole_number(1)),
        help="sequence lengths of the attention suite (default 32,64,128,256,512)",
    )
    parser.add_argument("--criteria", metavar="C,C", default="all", help="criteria of the quality suite (default all)")
    parser.add_argument(
        "--heads",
        metavar="R,R",
        type=ratios,
        default=(0.3, 0.5, 0.7),
        help="of the quality suite (default 0.3,0.5,0.7)",
    )
    parser.add_argument("--calibration", metavar="TEXT", default=DEFAULT_TEXT, help="of the quality suite")
    parser.add_argument("--calibration-tokens", metavar="N", type=whole_number(1), default=8192, help="default 8192")
    parser.add_argument("--text", metavar="TEXT", default=DEFAULT_TEXT, help="to judge by (default: test splits)")
    parser.add_argument(
        "--eval-tokens", metavar="N", type=whole_number(2), default=4096, help="per text (default 4096)"
    )
    parser.add_argument("--expand-kv", action="store_true", help="repeat grouped K/V, so that every head stands alone")
    parser.add_argument("--json", metavar="FILE", help="write environment, results and raw samples to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.files import require_writable_parent

    if options.json:
        from pathlib import Path

        require_writable_parent(Path(options.json))
    from sentinel.infer.engines import check_level
    from sentinel.measure import bench, environment
    from sentinel.measure.results import ResultSet
    from sentinel.report.terminal import print_tables

    for level in options.levels:
        check_level(level)
    loaded = load_model(options)
    place = environment.describe(options.device)
    if options.suite == "attention":
        lengths = options.lengths or bench.ATTENTION_LENGTHS
        results = bench.bench_attention(loaded, lengths, batch=options.batch, rounds=options.rounds)
    elif options.suite == "quality":
        results = run_quality(loaded, options)
    else:
        check_workload(options, loaded)
        settings = decode_settings(options)
        results = bench.bench_decode(
            loaded, settings, place.bandwidth_gb_s, source=options.model, random_weights=options.random_weights
        )
    found = ResultSet(place, results)
    if options.json:
        found.write(options.json)
    print_tables(found.results)


def decode_settings(options: argparse.Namespace) -> DecodeSettings:
    """What the decode suite runs, by the arguments."""
    from sentinel.infer.engines import check_precision
    from sentinel.measure.bench import DecodeSettings

    precisions = tuple(options.precision.split(","))
    for precision in precisions:
        check_precision(3, precision)
    return DecodeSettings(
        levels=options.levels,
        precisions=precisions,
        threads=options.threads,
        batch=options.batch,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
    )


def run_quality(loaded: LoadedModel, options: argparse.Namespace) -> list[Result]:
    """The quality suite, with the model's grouped keys repeated if asked for."""
    from dataclasses import replace

    from sentinel.adapt.corpora import load_texts, sample_windows
    from sentinel.adapt.prune import CRITERION_NAMES
    from sentinel.commands.pruning import prepared
    from sentinel.measure.quality import QualitySettings, bench_quality

    criteria = CRITERION_NAMES if options.criteria == "all" else tuple(options.criteria.split(","))
    texts = load_texts(options.text, "test")
    loaded.require_real_weights("a perplexity")
    length = min(512, loaded.spec.max_seq_len)
    calibration = load_texts(options.calibration, "train")
    windows = sample_windows(calibration, loaded.require_tokenizer(), options.calibration_tokens, length)
    settings = QualitySettings(criteria, options.heads, options.eval_tokens, length, options.rounds, options.new_tokens)
    return bench_quality(replace(loaded, decoder=prepared(loaded, options)), windows, texts, settings)
