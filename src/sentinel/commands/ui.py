"""``sentinel ui``: the server of ``sentinel serve`` with a page, to see what a width and a level do to a model's text."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_machine, add_model, warn_of_threads
from sentinel.commands.engine import add_engine
from sentinel.commands.server import add_server, server_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)
    parser.add_argument(
        "--report", metavar="PLACE", help="folder or results file of 'sentinel report', whose frontier the page draws"
    )
    add_server(parser)
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.api.model import load
    from sentinel.infer.batching import Batcher
    from sentinel.infer.engine import warm_up
    from sentinel.progress import say
    from sentinel.serve.page.engines import engines_of
    from sentinel.serve.page.frontier import frontier_of
    from sentinel.serve.page.routes import Page
    from sentinel.serve.page.studio import Studio
    from sentinel.serve.server import bound_socket
    from sentinel.serve.server import run as serve

    settings = server_settings(options)
    with bound_socket(settings) as listening:  # before a model is loaded for nothing
        frontier = None if options.report is None else frontier_of(options.report)
        warn_of_threads(options.threads)
        model = load(options.model, random_weights=options.random_weights, device=options.device, dtype=options.dtype)
        tokenizer, name = model.require_tokenizer(), options.name or model.name
        engines = engines_of(model, options.threads, options.kv)
        dial = engines.dial(options.level, options.precision, (options.heads or 0.0, options.neurons or 0.0))
        engine = engines.engine(dial)
        warm_up(engine)
        batcher = Batcher(
            engine,
            tokenizer,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            cache_mb=settings.cache_mb,
        )

        def ready(address: str) -> None:
            print(f"{name} at {address}/, to be opened in a browser; {engine.name} at {address}/v1", flush=True)

        with Studio(engines, tokenizer) as studio:
            serve(batcher, name, settings, listening, ready, Page(studio, name, dial, frontier))
        say("ended; all answers were finished or told why not")
