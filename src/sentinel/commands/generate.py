"""``sentinel generate``: stream an answer or a continuation; the last line on stderr tells speed and memory."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.commands.arguments import add_machine, add_model, plain_text, real_number, whole_number
from sentinel.commands.engine import add_engine, chosen_engine, open_engine
from sentinel.commands.presets import with_preset
from sentinel.errors import InputError

if TYPE_CHECKING:
    from sentinel.infer.engine import Engine
    from sentinel.infer.grammar import Form
    from sentinel.infer.speculation import Proposer
    from sentinel.models.tokenizer import TextTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        type=plain_text,
        help="question, or text to continue; - or nothing: standard input",
    )
    parser.add_argument("--file", metavar="FILE", help="instead: read the prompt from FILE (UTF-8)")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without a chat template")
    parser.add_argument("--system", metavar="TEXT", type=plain_text, help="system message of the chat template")
    add_engine(parser)
    parser.add_argument("--preset", metavar="NAME", help="level and pruning that 'recommend --save' kept")
    parser.add_argument("--max-new-tokens", metavar="N", type=whole_number(1), default=100, help="default 100")
    parser.add_argument("--temperature", metavar="T", type=real_number, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="keep the K likeliest tokens; 0 keeps all")
    parser.add_argument("--top-p", metavar="P", type=real_number, default=1.0, help="nucleus probability (default 1)")
    parser.add_argument(
        "--repetition-penalty", metavar="X", type=real_number, default=1.0, help="above 1 discourages repetition"
    )
    parser.add_argument(
        "--min-p",
        metavar="P",
        type=real_number,
        default=0.0,
        help="keep tokens of that share of the likeliest's chance",
    )
    parser.add_argument(
        "--presence-penalty", metavar="X", type=real_number, default=0.0, help="taken from logits of generated tokens"
    )
    parser.add_argument(
        "--frequency-penalty", metavar="X", type=real_number, default=0.0, help="likewise, for each time that one was"
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
    parser.add_argument(
        "--draft",
        metavar="D",
        help="let a cheaper copy propose tokens, and verify several at once: int8, int4, or a stored width as 0.5 (of "
        "heads) or 0.5/0.2 (heads/neurons); the text stays the same",
    )
    parser.add_argument("--json-schema", metavar="FILE", help="the answer is JSON of the schema in FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.infer.generate import Timings, stream_text
    from sentinel.infer.sampling import SamplingSettings
    from sentinel.measure.memory import peak_rss_mb
    from sentinel.progress import say

    settings = SamplingSettings(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
    )
    text = prompt_of(options)
    choice = chosen_engine(options)
    if options.preset is not None:
        choice = with_preset(choice, options.preset, options.model)
    if options.lookup and options.draft is not None:
        raise InputError("--lookup and --draft both propose tokens; give one of them")
    form = None if options.json_schema is None else _schema(options.json_schema)
    opened = open_engine(options, choice, options.draft)
    engine, tokenizer = opened.engine, opened.require_tokenizer()
    prompt, chat = token_ids(options, tokenizer, text)
    if opened.weights == "random":
        say("random weights: the text means nothing, the speed does")
    timings, proposer = Timings(), _proposer(options, engine)
    pieces = stream_text(
        engine, tokenizer, prompt, options.max_new_tokens, settings, options.stop, timings, proposer, form
    )
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        if timings.stamps:
            sys.stdout.write("\n")
            sys.stdout.flush()
    if proposer is not None:
        say(proposer.report)
    if timings.ended_at_once:
        way = "ask in another way"
        if tokenizer.chat_template is not None:
            way = "try --raw, which continues the text as it is" if chat else "leave out --raw, so that it is asked"
        say(f"the model ended at once, without a word; {way}")
    tpot = f"TPOT {timings.tpot_ms:.1f} ms, " if timings.tpot_ms is not None else ""
    say(
        f"{engine.name}{', chat template' if chat else ''}: {len(timings.stamps)} tokens, TTFT {timings.ttft_ms:.1f} ms, "
        f"{tpot}{timings.tokens_per_s:.1f} tokens/s, peak memory {peak_rss_mb():,.0f} MB"
    )


def _schema(path: str) -> Form:
    """The form that the schema in a file asks for."""
    from sentinel.infer.grammar import Form

    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--json-schema {path} can't be read as JSON ({error})") from error
    if not isinstance(schema, dict):
        raise InputError(f"--json-schema {path} is no schema; it must be a JSON object")
    return Form.json_schema(schema)


def _proposer(options: argparse.Namespace, engine: Engine) -> Proposer | None:
    from sentinel.infer.draft import Draft
    from sentinel.infer.lookup import PromptLookup

    if options.lookup:
        return PromptLookup()
    return None if engine.draft is None else Draft(engine.draft)


def prompt_of(options: argparse.Namespace) -> str:
    """The prompt: the argument, a file, or standard input, there without the newline that ends it."""
    if options.prompt is not None and options.file is not None:
        raise InputError("the prompt is given twice, as an argument and by --file; leave out one of them")
    if options.raw and options.system is not None:
        raise InputError("--system is part of the chat template, which --raw leaves out; give one of the two")
    if options.file is not None:
        try:
            text = _decoded(Path(options.file).expanduser().read_bytes(), options.file)
        except OSError as error:
            raise InputError(f"--file {options.file} can't be read ({error.strerror or error})") from error
    elif options.prompt in (None, "-"):
        if sys.stdin is None or (options.prompt is None and sys.stdin.isatty()):
            raise InputError("there is no prompt; give it as an argument, by --file, or on standard input")
        text = _decoded(sys.stdin.buffer.read(), "standard input")
    else:
        text = options.prompt
    if not text.strip():
        raise InputError("the prompt is empty; give some text")
    return text


def _decoded(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt in {where} is not UTF-8 (byte {error.start}); convert it first") from error
    return text.removesuffix("\n").removesuffix("\r")


def token_ids(options: argparse.Namespace, tokenizer: TextTokenizer, text: str) -> tuple[list[int], bool]:
    """What the model reads: ``text`` asked through its chat template, where it has one, else the text alone; and which."""
    if options.raw or tokenizer.chat_template is None:
        if options.system is not None:
            raise InputError(f"{options.model} has no chat template, which --system is part of; leave it out")
        return tokenizer.encode(text), False
    messages = [{"role": "user", "content": text}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return tokenizer.apply_chat(messages), True
