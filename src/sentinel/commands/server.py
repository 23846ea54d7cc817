"""Where a server listens, who may ask, and how much: arguments of every command that is one."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from sentinel.commands.arguments import plain_text, real_number, whole_number

if TYPE_CHECKING:
    from sentinel.serve.settings import ServeSettings

KEY = "SENTINEL_API_KEY"


def add_server(parser: argparse.ArgumentParser) -> None:
    """Address, key, name and limits."""
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


def server_settings(options: argparse.Namespace) -> ServeSettings:
    """What those arguments say."""
    from sentinel.serve.settings import ServeSettings

    return ServeSettings(
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
