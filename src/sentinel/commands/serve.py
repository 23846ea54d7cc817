"""``sentinel serve``: a model over HTTP, for OpenAI's clients."""

from __future__ import annotations

import argparse

from sentinel.commands.arguments import add_machine, add_model
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.server import add_server, server_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_engine(parser)
    add_server(parser)
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.batching import Batcher
    from sentinel.progress import say
    from sentinel.serve.server import bound_socket
    from sentinel.serve.server import run as serve

    settings = server_settings(options)
    listening = bound_socket(settings)  # before a model is loaded for nothing
    with listening:
        opened = open_engine(options)
        engine, tokenizer = opened.engine, opened.require_tokenizer()
        name = options.name or opened.name
        batcher = Batcher(
            engine,
            tokenizer,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            cache_mb=settings.cache_mb,
        )

        def ready(address: str) -> None:
            print(f"{name} ({engine.name}) at {address}/v1", flush=True)

        serve(batcher, name, settings, listening, ready)
        say("ended; all answers were finished or told why not")
