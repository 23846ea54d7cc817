"""``sentinel-lm-eval``: the command line of EleutherAI's harness, with "sentinel" among its models (extra ``eval``)."""

from __future__ import annotations

import sys

from sentinel.errors import InputError


def main() -> None:
    """Run it; exit codes are those of ``sentinel``."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

            import sentinel.measure.lm_eval_model  # noqa: F401  (registers the model)
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is missing; install it by pip install 'sentinel-ai[eval]'") from error
        cli_evaluate()
    except InputError as error:
        print(f"sentinel: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nsentinel: interrupted", file=sys.stderr)
        sys.exit(130)
