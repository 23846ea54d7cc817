"""``sentinel generate``: stream the continuation of a prompt; the last line on stderr tells speed and memory."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sentinel.commands.arguments import (
    add_machine,
    add_model,
    load_model,
    real_number,
    set_pruning_level,
    warn_of_threads,
    whole_number,
)
from sentinel.commands.pruning import ratio
from sentinel.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel.infer.engines import Engine
    from sentinel.models.tokenizer import TextTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue")
    parser.add_argument(
        "--level", type=int, metavar="0-3", help="optimisation level (default 1; of a quantised model 3)"
    )
    parser.add_argument("--precision", choices=("fp32", "int8", "int4"), help="of level 3: int8 (default) or int4")
    parser.add_argument(
        "--heads", metavar="R", type=ratio, default=0.0, help="stored pruning level of an elastic model"
    )
    parser.add_argument("--neurons", metavar="R", type=ratio, default=0.0, help="likewise")
    parser.add_argument("--max-new-tokens", metavar="N", type=whole_number(1), default=100, help="default 100")
    parser.add_argument("--temperature", metavar="T", type=real_number, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="keep the K likeliest tokens; 0 keeps all")
    parser.add_argument("--top-p", metavar="P", type=real_number, default=1.0, help="nucleus probability (default 1)")
    parser.add_argument(
        "--repetition-penalty", metavar="X", type=real_number, default=1.0, help="above 1 discourages repetition"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of sampling (default 0)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before TEXT; may be repeated")
    parser.add_argument(
        "--lookup",
        action="store_true",
        help="propose tokens that followed the same words before, and verify several at once; the text stays the same",
    )
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.generate import Timings, stream_text
    from sentinel.infer.lookup import PromptLookup
    from sentinel.infer.sampling import SamplingSettings
    from sentinel.measure.memory import peak_rss_mb
    from sentinel.progress import say

    settings = SamplingSettings(
        options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed
    )
    engine, tokenizer = open_engine(options)
    timings, lookup = Timings(), PromptLookup() if options.lookup else None
    pieces = stream_text(
        engine, tokenizer, options.prompt, options.max_new_tokens, settings, options.stop, timings, lookup
    )
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        if timings.stamps:
            sys.stdout.write("\n")
            sys.stdout.flush()
    if lookup is not None:
        say(f"lookup: {lookup.accepted} of {lookup.proposed} proposed tokens were right, in {lookup.passes} passes")
    tpot = f"TPOT {timings.tpot_ms:.1f} ms, " if timings.tpot_ms is not None else ""
    say(
        f"{engine.name}: {len(timings.stamps)} tokens, TTFT {timings.ttft_ms:.1f} ms, {tpot}"
        f"{timings.tokens_per_s:.1f} tokens/s, peak memory {peak_rss_mb():,.0f} MB"
    )


def open_engine(options: argparse.Namespace) -> tuple[Engine, TextTokenizer]:
    """The engine and the tokenizer that the arguments name; a quantised checkpoint is run without torch."""
    from pathlib import Path

    from sentinel.infer.engines import check_level, check_precision, make_engine
    from sentinel.progress import say

    if options.level is not None:
        check_level(options.level)
    folder = Path(options.model).expanduser()
    if folder.is_dir() and options.random_weights is None:
        from sentinel.infer.quantised import is_quantised

        if is_quantised(folder):
            return _open_quantised(folder, options)
    level = 1 if options.level is None else options.level
    precision = check_precision(level, options.precision)
    loaded = load_model(options)
    if loaded.weights == "random":
        say("random weights: the text means nothing, the speed does")
    set_pruning_level(loaded.decoder, options.heads, options.neurons)
    tokenizer = loaded.require_tokenizer()
    return make_engine(loaded.decoder, level, precision=precision, threads=options.threads), tokenizer


def _open_quantised(folder: Path, options: argparse.Namespace) -> tuple[Engine, TextTokenizer]:
    from sentinel.infer.cpu_engine import CpuEngine
    from sentinel.infer.quantised import load_level, load_quantised

    if options.device != "cpu":
        raise InputError(f"{options.model} is quantised, which runs on the CPU only; leave out --device")
    warn_of_threads(options.threads)
    weights, tokenizer = load_quantised(folder)
    if options.level not in (None, 3) or options.precision not in (None, weights.precision):
        raise InputError(f"{options.model} is quantised to {weights.precision}, so that only level 3 runs it so")
    if tokenizer is None:
        raise InputError(f"{options.model} has no tokenizer, so it can't read or write text")
    engine = CpuEngine(weights, threads=options.threads)
    if options.heads or options.neurons:
        engine.set_level(load_level(folder, weights, options.heads, options.neurons))
    return engine, tokenizer
