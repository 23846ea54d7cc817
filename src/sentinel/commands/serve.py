"""``sentinel serve``: a model over HTTP, for OpenAI's clients."""

from __future__ import annotations

import argparse
import os

from sentinel.commands.arguments import add_machine, add_model, plain_text, real_number, whole_number
from sentinel.commands.engine import add_engine, open_engine

KEY = "SENTINEL_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default 127.0.0.1; others need a key")
    parser.add_argument("--port", metavar="N", type=whole_number(0), default=8000, help="default 8000; 0: a free one")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=plain_text,
        help=f"that requests must bring (default: {KEY} of the environment)",
    )
    parser.add_argument(
        "--name", metavar="NAME", type=plain_text, help="what the model is called (default: its own name)"
    )
    parser.add_argument("--batch", metavar="N", type=whole_number(1), default=16, help="answers at once (default 16)")
    parser.add_argument(
        "--queue", metavar="N", type=whole_number(1), default=64, help="requests that wait (default 64)"
    )
    parser.add_argument(
        "--cache",
        metavar="MB",
        type=real_number,
        default=256.0,
        help="of keys and values kept of earlier answers, for prompts that begin alike (default 256)",
    )
    parser.add_argument("--max-prompt", metavar="N", type=whole_number(1), help="tokens (default: the model's context)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=whole_number(1), help="of an answer (default: the model's context)"
    )
    parser.add_argument("--max-body", metavar="MB", type=real_number, default=4.0, help="of a request (default 4 MB)")
    parser.add_argument(
        "--grace",
        metavar="S",
        type=real_number,
        default=30.0,
        help="seconds for answers under way at the end (default 30)",
    )
    parser.add_argument(
        "--shed",
        metavar="W,W",
        help="under load, go down to these stored widths of an elastic model, as 0.3,0.5 (of heads) or 0.5/0.2 "
        "(heads/neurons); default: never",
    )
    parser.add_argument(
        "--shed-wait", metavar="S", type=real_number, default=0.5, help="a request waits longer: load (default 0.5)"
    )
    parser.add_argument(
        "--shed-tpot", metavar="S", type=real_number, default=0.2, help="a token takes longer: load (default 0.2)"
    )
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.batching import Batcher
    from sentinel.infer.shedding import Shedding, width_name, widths_to_shed
    from sentinel.progress import say
    from sentinel.serve.server import bound_socket
    from sentinel.serve.server import run as serve
    from sentinel.serve.settings import ServeSettings

    settings = ServeSettings(
        host=options.host,
        port=options.port,
        api_key=options.api_key if options.api_key is not None else os.environ.get(KEY),
        max_batch=options.batch,
        max_queue=options.queue,
        cache_mb=options.cache,
        max_prompt=options.max_prompt,
        max_new_tokens=options.max_new_tokens,
        max_body_mb=options.max_body,
        grace_s=options.grace,
    )
    names = [] if options.shed is None else options.shed.split(",")
    heads, neurons = options.heads or 0.0, options.neurons or 0.0
    listening = bound_socket(settings)  # before a model is loaded for nothing
    with listening:
        narrower = widths_to_shed(names, heads, neurons)
        opened = open_engine(options, narrower=narrower)
        engine, tokenizer = opened.engine, opened.require_tokenizer()
        name = options.name or opened.name
        shedding = None
        if narrower:
            named = {width_name(*ratios): its for ratios, its in zip(narrower, opened.narrower, strict=True)}
            shedding = Shedding(width_name(heads, neurons), named, options.shed_wait, options.shed_tpot)
        batcher = Batcher(
            engine,
            tokenizer,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            cache_mb=settings.cache_mb,
            shedding=shedding,
        )

        def ready(address: str) -> None:
            print(f"{name} ({engine.name}) at {address}/v1", flush=True)

        serve(batcher, name, settings, listening, ready)
        say("ended; all answers were finished or told why not")
