"""``sentinel-lm-eval``: the command line of EleutherAI's harness, with "sentinel" among its models (extra ``eval``)."""

from __future__ import annotations

import sys
from pathlib import Path

from sentinel.errors import InputError

TASKS = Path(__file__).parents[1] / "measure" / "lm_eval_tasks"


def _own_tasks(arguments: list[str]) -> list[str]:
    """Where the harness finds the project's own tasks, for arguments that name one of them."""
    return ["--include_path", str(TASKS)] if any("sentinel_" in argument for argument in arguments) else []


def main() -> None:
    """Run it; exit codes are those of ``sentinel``."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

            import sentinel.measure.lm_eval_model  # noqa: F401  (registers the model)
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is missing; install it by pip install 'sentinel-ai[eval]'") from error
        if not any(argument.startswith("--include_path") for argument in sys.argv):
            sys.argv += _own_tasks(sys.argv)
        cli_evaluate()
    except InputError as error:
        print(f"sentinel: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nsentinel: interrupted", file=sys.stderr)
        sys.exit(130)
