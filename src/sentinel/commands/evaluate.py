"""``sentinel evaluate``: perplexity, agreement with a teacher, and variety of sampled text."""

from __future__ import annotations

import argparse
from typing import Any

from sentinel.commands.arguments import add_machine, add_model, whole_number
from sentinel.commands.engine import add_engine, open_engine
from sentinel.commands.pruning import DEFAULT_TEXT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text", metavar="TEXT", default=DEFAULT_TEXT,
        help=f"files, folders or built-in texts, with commas between (default {DEFAULT_TEXT}: their test splits)",
    )  # fmt: skip
    add_engine(parser)
    parser.add_argument("--context", metavar="N", type=whole_number(2), help="tokens seen (default 512, or all it can)")
    parser.add_argument("--stride", metavar="N", type=whole_number(1), help="default: half the context")
    parser.add_argument("--max-tokens", metavar="N", type=whole_number(1), help="stop after N tokens (default: all)")
    parser.add_argument("--teacher", metavar="MODEL", help="compare predictions with this model")
    parser.add_argument("--json", metavar="FILE", help="write environment and result to FILE")
    add_machine(parser)


def run(options: argparse.Namespace) -> None:
    from sentinel.adapt.corpora import load_texts, refuse_seen_text
    from sentinel.adapt.likelihood import finite
    from sentinel.errors import InputError
    from sentinel.files import check_output_file
    from sentinel.measure import environment
    from sentinel.measure.perplexity import evaluate
    from sentinel.measure.results import Result, ResultSet
    from sentinel.measure.text_metrics import sample_variety
    from sentinel.models.sources import load
    from sentinel.report.terminal import print_tables

    if options.json is not None:
        check_output_file(options.json)
    texts = load_texts(options.text, "test")
    opened = open_engine(options)
    opened.require_real_weights("its quality")
    refuse_seen_text(opened.record, texts)
    engine, tokenizer = opened.engine, opened.require_tokenizer()
    judged: Any = getattr(engine, "decoder", engine)  # levels 0 and 1 run a decoder, 2 and 3 score by themselves
    teacher = load(options.teacher, device=options.device) if options.teacher is not None else None
    if teacher is not None and teacher.spec.vocab_size != engine.spec.vocab_size:
        raise InputError(
            f"--teacher {options.teacher} has {teacher.spec.vocab_size} tokens, {opened.name} has "
            f"{engine.spec.vocab_size}; a teacher needs the same vocabulary"
        )
    if teacher is not None:
        refuse_seen_text(teacher.record, texts)
    found = evaluate(
        judged, tokenizer, texts, context=options.context, stride=options.stride, max_tokens=options.max_tokens,
        teacher=None if teacher is None else teacher.decoder,
    )  # fmt: skip
    variety = sample_variety(engine, tokenizer, texts)
    result = Result(
        suite="evaluate",
        model=opened.name,
        weights=opened.weights,
        engine=engine.name,
        level=engine.level,
        precision=engine.precision,
        heads_pruned=options.heads or 0.0,
        neurons_pruned=options.neurons or 0.0,
        parameters=engine.spec.parameter_count(),
        text=found.text,
        context=found.context,
        stride=found.stride,
        tokens=found.tokens,
        nll=found.nll,
        perplexity=finite(found.perplexity),
        perplexity_stderr=found.perplexity_stderr,
        bits_per_byte=found.bits_per_byte,
        kl=found.kl,
        top1_agreement=found.top1_agreement,
        **vars(variety),
    )
    results = ResultSet(environment.describe(options.device), [result])
    if options.json is not None:
        results.write(options.json)
    print_tables(results.results)
