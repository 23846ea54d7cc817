"""``sentinel chat``: talk to a model. Answers go to stdout, notes to stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_machine, add_model, plain_text, real_number, whole_number
from sentinel.commands.engine import add_engine, chosen_engine, open_engine
from sentinel.commands.pruning import ratio
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.infer.conversation import Conversation

HELP = """/reset             begin anew
/save FILE         write the chat to FILE (JSON)
/load FILE         go on with a chat that was saved
/set NAME VALUE    temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed,
                   max_new_tokens
/heads R           another stored width of an elastic model, as 0.5 or 0.5/0.2 (heads/neurons)
/stats             what the last answer took
/help              this
/quit              end (also Ctrl-D); Ctrl-C stops an answer"""
KIND = "sentinel chat"
SET = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"
)  # fmt: skip
WHOLE = ("top_k", "seed", "max_new_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", type=plain_text, help="system message")
    add_engine(parser)
    parser.add_argument("--max-new-tokens", metavar="N", type=whole_number(1), default=1024, help="default 1024")
    parser.add_argument("--temperature", metavar="T", type=real_number, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", metavar="N", type=whole_number(0), default=0, help="of sampling (default 0)")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.conversation import Conversation
    from sentinel.infer.sampling import SamplingSettings
    from sentinel.progress import say

    lines = _typed() if sys.stdin is not None and sys.stdin.isatty() else _piped()
    settings = SamplingSettings(temperature=options.temperature, seed=options.seed)
    opened = open_engine(options)
    conversation = Conversation(opened.engine, opened.require_tokenizer(), options.system)
    conversation.settings, conversation.max_new_tokens = settings, options.max_new_tokens
    say(f"{opened.name}, {opened.engine.name}; /help says what else can be typed")
    chat = Chat(conversation, options)
    for line in lines:
        if line.strip() and not chat.take(line):
            break


class Chat:
    """Takes what was typed: a command, or something to be answered."""

    def __init__(self, conversation: Conversation, options: argparse.Namespace) -> None:
        self._conversation, self._options = conversation, options
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/set": self._set,
            "/heads": self._heads,
            "/stats": self._stats,
            "/help": self._help,
        }

    def take(self, line: str) -> bool:
        """False once it is to end. What can't be done is said, and the chat goes on."""
        from sentinel.progress import console, say

        name, _, rest = line.strip().partition(" ")
        if name == "/quit":
            return False
        try:
            if not name.startswith("/"):
                self._answer(line)
            elif name in self._commands:
                self._commands[name](rest.strip())
            else:
                raise InputError(f"there is no {name}; /help says what there is")
        except InputError as error:
            if console.quiet:
                print(error, file=sys.stderr)
            say(f"{error}")
        return True

    def _answer(self, text: str) -> None:
        from sentinel.progress import say

        with _interrupts() as stopped:
            for piece in self._conversation.reply(text, stopped.is_set):
                sys.stdout.write(piece)
                sys.stdout.flush()
        print(flush=True)
        if self._conversation.turn.left_out:
            say(f"the oldest {self._conversation.turn.left_out} messages were left out: the context is full")
        if self._conversation.turn.stopped:
            say("stopped; what was said is kept")

    def _help(self, rest: str) -> None:
        print(HELP)

    def _reset(self, rest: str) -> None:
        self._conversation.reset()

    def _save(self, rest: str) -> None:
        from sentinel.files import write_file
        from sentinel.progress import say

        path = _path(rest, "/save")
        if path.exists():
            _read(path)  # nothing is replaced but a chat
        content = {"kind": KIND, "messages": self._conversation.messages}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with write_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        say(f"saved to {path}")

    def _load(self, rest: str) -> None:
        from sentinel.progress import say

        self._conversation.messages = _read(_path(rest, "/load"))
        say(f"{len(self._conversation.messages)} messages")

    def _set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ").partition(" ")
        name = name.replace("-", "_")
        if name not in (*SET, "max_new_tokens"):
            raise InputError(f"there is no {name or 'name'} to set; /help says what there is")
        try:
            number = int(value) if name in WHOLE else float(value)
        except ValueError:
            raise InputError(f"{name} must be a number, not {value!r}") from None
        conversation = self._conversation
        if name != "max_new_tokens":
            conversation.settings = dataclasses.replace(conversation.settings, **{name: number})
        elif number < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {value}")
        else:
            conversation.max_new_tokens = int(number)

    def _heads(self, rest: str) -> None:
        from sentinel.progress import say

        heads, _, neurons = rest.partition("/")
        try:
            width = {"heads": ratio(heads), "neurons": ratio(neurons or "0")}
        except argparse.ArgumentTypeError as error:
            raise InputError(f"/heads takes a ratio as 0.5, or 0.5/0.2 with neurons ({error})") from None
        opened = open_engine(self._options, dataclasses.replace(chosen_engine(self._options), **width))
        self._conversation.run_by(opened.engine)
        say(f"{opened.engine.name}, without {width['heads']:.0%} of heads and {width['neurons']:.0%} of neurons")

    def _stats(self, rest: str) -> None:
        conversation, turn = self._conversation, self._conversation.turn
        if not turn.stamps:
            raise InputError("nothing was answered yet")
        print(
            f"{len(turn.stamps)} tokens, TTFT {turn.stamps[0] * 1e3:.1f} ms, {turn.tokens_per_s:.1f} tokens/s; prompt "
            f"{turn.n_prompt} tokens, {turn.n_read} of them read anew; context "
            f"{conversation.engine.spec.max_seq_len}; {conversation.engine.name}"
        )


def _path(text: str, command: str) -> Path:
    if not text:
        raise InputError(f"{command} needs the name of a file")
    return Path(text).expanduser()


def _read(path: Path) -> list[dict[str, str]]:
    """The messages of a saved chat."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no saved chat ({error})") from error
    messages = content.get("messages") if isinstance(content, dict) and content.get("kind") == KIND else None
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise InputError(f"{path} is no saved chat; name another file")
    return messages


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


@contextmanager
def _interrupts() -> Generator[threading.Event, None, None]:
    """Inside, Ctrl-C sets the event, and nothing else."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _piped() -> Iterator[str]:
    """Lines of standard input."""
    if sys.stdin is None:
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"line {number} of standard input is not UTF-8 (byte {error.start})") from error


def _typed() -> Iterator[str]:
    """Lines from the terminal, with a history of this session; Ctrl-C drops a line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML

    session: PromptSession[str] = PromptSession()

    def lines() -> Iterator[str]:
        while True:
            try:
                yield session.prompt(HTML("<b>&gt; </b>"))
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    return lines()
