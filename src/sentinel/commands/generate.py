"""``sentinel generate``: stream the continuation of a prompt; the last line on stderr tells speed and memory."""

from __future__ import annotations

import argparse
import sys

from sentinel.commands.arguments import add_machine, add_model, plain_text, real_number, whole_number
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.presets import apply_preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", type=plain_text, help="text to continue")
    add_engine(parser)
    parser.add_argument("--preset", metavar="NAME", help="level and pruning that 'recommend --save' kept")
    parser.add_argument("--max-new-tokens", metavar="N", type=whole_number(1), default=100, help="default 100")
    parser.add_argument("--temperature", metavar="T", type=real_number, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="keep the K likeliest tokens; 0 keeps all")
    parser.add_argument("--top-p", metavar="P", type=real_number, default=1.0, help="nucleus probability (default 1)")
    parser.add_argument(
        "--repetition-penalty", metavar="X", type=real_number, default=1.0, help="above 1 discourages repetition"
    )
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help="of sampling (default 0)")
    parser.add_argument(
        "--stop", metavar="TEXT", type=plain_text, action="append", default=[], help="end before TEXT; may be repeated"
    )
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
    apply_preset(options)
    opened = open_engine(options)
    engine, tokenizer = opened.engine, opened.require_tokenizer()
    if opened.weights == "random":
        say("random weights: the text means nothing, the speed does")
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
