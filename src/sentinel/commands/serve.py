"""``sentinel serve``: a model over HTTP, for OpenAI's clients."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_machine, add_model, real_number
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.server import add_server, server_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)
    add_server(parser)
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

    settings = server_settings(options)
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
