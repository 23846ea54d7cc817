"""``sentinel report``: measure the model here and write HTML, Markdown and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from sentinel.commands.arguments import add_machine, add_model, add_workload, check_workload, load_model
from sentinel.commands.bench import decode_settings, run_quality
from sentinel.commands.pruning import DEFAULT_TEXT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default="smollm2-135m")
    parser.add_argument("-o", "--output", metavar="DIR", default="report", help="folder to write (default report)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, criteria and tokens: about two minutes")
    parser.add_argument(
        "--calibration", metavar="TEXT", default=DEFAULT_TEXT, help="for pruning (default: train splits)"
    )
    parser.add_argument("--text", metavar="TEXT", default=DEFAULT_TEXT, help="to judge by (default: test splits)")
    parser.add_argument(
        "--grouped-kv", dest="expand_kv", action="store_false", help="prune whole K/V groups, not single heads"
    )
    parser.add_argument("--from", dest="source", metavar="FILE", help="draw a results file again, measure nothing")
    add_workload(parser)
    add_machine(parser)


def is_report(folder: Path) -> bool:
    """True for a folder that holds a report, which may be replaced."""
    return (folder / "results.json").exists()


def run(options: argparse.Namespace) -> None:
    from sentinel.files import check_output_folder

    folder = check_output_folder(options.output, is_report)
    from sentinel.measure.results import ResultSet
    from sentinel.report.render import write_report
    from sentinel.report.terminal import print_tables

    results = ResultSet.read(options.source) if options.source else measure(options)
    folder.mkdir(exist_ok=True)
    write_report(results, folder)
    print_tables(results.results)
    print(f"\n{folder / 'report.html'}\n{folder / 'report.md'}\n{folder / 'results.json'}")


def measure(options: argparse.Namespace):
    """Run the suites of the report."""
    from sentinel.measure import bench, environment
    from sentinel.measure.results import ResultSet

    loaded = load_model(options)
    check_workload(options, loaded)
    place = environment.describe(options.device)
    options.levels, options.precision = (0, 1, 2, 3), "int8" if options.quick else "int8,int4"
    options.rounds = min(options.rounds, 3) if options.quick else options.rounds
    settings = decode_settings(options)
    decode = bench.bench_decode(
        loaded, settings, place.bandwidth_gb_s, source=options.model, random_weights=options.random_weights
    )
    lengths = tuple(n for n in bench.ATTENTION_LENGTHS if n <= loaded.spec.max_seq_len)
    attention = bench.bench_attention(loaded, lengths, batch=options.batch, rounds=3 if options.quick else 15)
    quality = []
    if loaded.weights == "real" and loaded.tokenizer is not None:
        options.criteria = "fisher" if options.quick else "all"
        options.heads = (0.5,) if options.quick else (0.3, 0.5, 0.7)
        options.calibration_tokens, options.eval_tokens = (2048, 1024) if options.quick else (8192, 4096)
        quality = run_quality(loaded, options)
    return ResultSet(place, [*decode, *quality, *attention])
