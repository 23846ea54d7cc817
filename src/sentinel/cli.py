"""The command line: a table of commands, each a module that is imported only when its command is called.

Exit codes: 0 done, 2 bad input, 130 interrupted (Ctrl-C, SIGTERM, SIGHUP), 1 a fault of ours. Results go to stdout,
everything else to stderr. A reader that has had enough (``| head -1``) is no fault: the command ends quietly with 0, also
under ``set -o pipefail``; what a command writes to files is written before it prints.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from sentinel import __version__
from sentinel.errors import InputError, Interrupted
from sentinel.process import command_line, leave_stdout

COMMANDS = {
    "info": "sizes, bytes and FLOPs per token of a model",
    "generate": "continue a prompt, streamed, with speed and memory",
    "serve": "a model over HTTP, for OpenAI's clients, many at once",
    "ui": "the same server with a page: a dial of widths and levels, and what it does to the text",
    "chat": "talk to a model, with its chat template and a history",
    "importance": "how much every head matters, as a map",
    "prune": "remove heads and neurons, re-solve what is left, write a smaller model",
    "integrate": "add U-Net skips and baseline integration, or take them off",
    "recover": "win back quality after pruning, by distillation from the unpruned model",
    "quantize": "write an int8 or int4 checkpoint that runs without torch",
    "export": "write it for other runtimes: Hugging Face, llama.cpp, ONNX Runtime",
    "adapt": "prune, measure, regrow and learn in cycles, down to a budget",
    "optimize": "search precisions and widths for the best model within a goal, and write it",
    "evaluate": "perplexity, agreement with a teacher, variety of sampled text",
    "bench": "measure one suite: decode, attention, quality and others",
    "compare": "what changed between two results files by more than noise",
    "profile": "time and memory per component, as table, chart and Chrome trace",
    "sweep": "quality over models, criteria and pruning ratios, on many processes or machines",
    "report": "measure everything and write HTML, Markdown and JSON",
    "cache": "what is kept between starts, and how to be rid of it",
    "recommend": "what to run here, chosen from measurements by a stated rule",
}

# Top-level modules of the extra "full"; a quantised folder runs without them.
FULL = frozenset({"torch", "transformers", "safetensors", "gguf", "huggingface_hub", "altair", "vl_convert"})

# Top-level modules of the extra "serve".
SERVE = frozenset({"starlette", "uvicorn", "prometheus_client", "prompt_toolkit", "llguidance"})

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sentinel: {message}; see '{self.prog} --help'\n")


def build_parser(chosen: str | None) -> Parser:
    """The parser; only the ``chosen`` command's module is imported and its arguments added."""
    parser = Parser(
        prog="sentinel",
        description="Prune, regrow and really remove attention heads, run the model fast here, and report honestly.",
    )
    parser.add_argument("--version", action="version", version=f"sentinel {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"sentinel.commands.{name}")
            module.add_arguments(sub)
            sub.add_argument("-q", "--quiet", action="store_true", help="no progress and notes on stderr")
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with command_line():
        return _main(arguments)


def _run(arguments: list[str]) -> None:
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    options = build_parser(chosen).parse_args(arguments, argparse.Namespace(arguments=arguments))
    from sentinel.files import stdout_reserved
    from sentinel.progress import begin

    begin(quiet=options.quiet)
    with stdout_reserved([getattr(options, name, None) for name in ("json", "trace")]):
        options.run(options)
    sys.stdout.flush()


def _main(arguments: list[str]) -> int:
    try:
        _run(arguments)
    except InputError as error:
        print(f"sentinel: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in SERVE:
            print(f"sentinel: {package} is missing; pip install 'sentinel-ai[serve]'", file=sys.stderr)
            return 2
        if package not in FULL:
            raise
        print(
            f"sentinel: without {package} only quantised folders run here; install the rest with "
            "pip install 'sentinel-ai[full]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as interrupt:
        kept = f"; {interrupt}" if isinstance(interrupt, Interrupted) else ""
        print(f"\nsentinel: interrupted{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        leave_stdout()
        return 0
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        leave_stdout()
        print(f"sentinel: {error.filename or 'standard output'} can't be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
