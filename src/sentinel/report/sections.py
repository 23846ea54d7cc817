"""The sections of a report, one per suite: what it asks, its columns, how its numbers were made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sentinel.adapt.text.judges import JUDGES
from sentinel.measure.results import Result
from sentinel.report import cells, notes
from sentinel.report.candidates import STORED
from sentinel.report.cells import Column, engine_name, milliseconds, number, percent, ratio, yes_or_no

ENGINE: Column = ("engine", lambda r: engine_name(r.engine))
HEADS: Column = ("heads removed", cells.heads)
NEURONS: Column = ("neurons removed", lambda r: percent(r.neurons_pruned))
TOKENS_PER_S: Column = ("tokens/s", lambda r: number(r.tokens_per_s))
TTFT: Column = ("TTFT ms", lambda r: number(r.ttft_ms))
TPOT: Column = ("TPOT ms", lambda r: number(r.tpot_ms))
ROOFLINE: Column = (
    "roofline tokens/s",
    lambda r: "cache" if r.roofline == "cache" else number(r.roofline_tokens_per_s, 0),
)
MBU: Column = ("MBU", lambda r: f"{percent(r.mbu)}{' *' if r.mbu_note else ''}")
PEAK: Column = ("peak memory MB", lambda r: number(r.peak_memory_mb, 0))
SPEEDUP: Column = ("speed-up", ratio)
PARAMETERS: Column = ("parameters", lambda r: number(r.parameters, 0))
GROWTH: Column = ("growth", lambda r: percent(r.growth, 3))
PERPLEXITY: Column = ("perplexity", cells.perplexity)
OVER_DENSE: Column = ("over dense", cells.over_dense)
AGREEMENT: Column = ("top-1 agreement", lambda r: percent(r.top1_agreement, 1))
CRITERION: Column = ("criterion", lambda r: r.criterion or "not pruned")
COMPENSATED: Column = ("compensated", lambda r: yes_or_no(r.compensated))
# Perplexity over dense on each kind of text.
KINDS: tuple[Column, ...] = tuple((kind, functools.partial(cells.of_kind, kind)) for kind in JUDGES)
RUN = (TOKENS_PER_S, TTFT, TPOT, ROOFLINE, MBU)


@dataclass(frozen=True)
class Section:
    """A suite in a report. ``note`` says of its rows how they were made, ``over`` what their speed-ups are over, where
    that is not one engine for all of them.
    """

    suite: str
    title: str
    columns: Sequence[Column]
    note: Callable[[Sequence[Result]], str] = notes.generation_note
    over: str = ""


CONFIGURATIONS = {"original": "head by head (level 0)"}
# Without the speeds that the suite measures at level 1: those of every level stand in the suites of speed.
QUALITY = (CRITERION, ENGINE, HEADS, COMPENSATED, PERPLEXITY, OVER_DENSE, AGREEMENT, *KINDS, PARAMETERS)

SECTIONS = (
    Section("levels", "Optimisation levels", (ENGINE, HEADS, *RUN, SPEEDUP), notes.levels_note),
    Section(
        "decode",
        "Generation",
        (ENGINE, *RUN, PEAK, SPEEDUP, ("same tokens", lambda r: yes_or_no(r.same_tokens_as_reference))),
        notes.decode_note,
    ),
    Section("quality", "Quality after pruning and quantisation", QUALITY, notes.quality_note),
    Section(STORED, "Quality after pruning: stored results of a full run", QUALITY, notes.quality_note),
    Section("pruning", "Pruning: speed", (ENGINE, HEADS, NEURONS, PARAMETERS, *RUN, SPEEDUP), notes.pruning_note),
    Section(
        "integration",
        "Skips and baseline integration",
        (
            ("configuration", lambda r: CONFIGURATIONS.get(r.configuration or "–", r.configuration or "–")),
            ("level", lambda r: number(r.level, 0)),
            HEADS,
            TOKENS_PER_S,
            SPEEDUP,
            PERPLEXITY,
            OVER_DENSE,
            PARAMETERS,
            GROWTH,
        ),
        notes.integration_note,
        "head by head (level 0)",
    ),
    Section(
        "context",
        "Long contexts: where removed heads pay",
        (("context", lambda r: number(r.prompt_tokens, 0)), ENGINE, HEADS, TOKENS_PER_S, TPOT, ROOFLINE, MBU, SPEEDUP),
        notes.context_note,
        "the same level, not pruned",
    ),
    Section(
        "batch",
        "Several sequences at once",
        (("batch", lambda r: number(r.batch, 0)), ENGINE, *RUN, SPEEDUP),
        notes.batch_note,
        "Hugging Face generate() at that batch",
    ),
    Section(
        "attention",
        "Attention: head by head against fused",
        (
            ("phase", lambda r: r.phase or "–"),
            ("tokens", lambda r: number(r.prompt_tokens, 0)),
            ("implementation", lambda r: engine_name(r.engine)),
            HEADS,
            ("ms", milliseconds),
            ("tokens/s", lambda r: number(r.tokens_per_s, 0)),
            SPEEDUP,
        ),
        notes.attention_note,
    ),
    Section(
        "scaling",
        "What being adaptive costs",
        (
            ("model", lambda r: r.model),
            ("variant", lambda r: r.configuration or "–"),
            PARAMETERS,
            GROWTH,
            TOKENS_PER_S,
            SPEEDUP,
            PEAK,
        ),
        notes.scaling_note,
        "the same model with gates alone",
    ),
    Section(
        "draft",
        "Drafts and lookup",
        (
            ENGINE,
            TOKENS_PER_S,
            TTFT,
            TPOT,
            SPEEDUP,
            ("accepted", lambda r: percent(r.acceptance)),
            ("same tokens", lambda r: yes_or_no(r.same_tokens_as_reference)),
        ),
    ),
    Section(
        "prefill",
        "Prefill",
        (
            ("prompt", lambda r: number(r.prompt_tokens, 0)),
            ENGINE,
            TTFT,
            ("GOP/s per thread", lambda r: number(r.gops_per_thread, 0)),
            SPEEDUP,
        ),
        notes.prefill_note,
        "Hugging Face",
    ),
    Section(
        "peers",
        "Beside other engines",
        (
            ("prompt", lambda r: number(r.prompt_tokens, 0)),
            ("batch", lambda r: number(r.batch, 0)),
            ENGINE,
            ("model", lambda r: r.configuration or "–"),
            ("weights", lambda r: r.precision or "–"),
            *RUN,
            SPEEDUP,
            ("time saved over share of bytes removed", cells.saved),
            ("same tokens", lambda r: yes_or_no(r.same_tokens_as_reference)),
        ),
        notes.peers_note,
    ),
    Section(
        "serve",
        "Serving",
        (
            ENGINE,
            ("part", lambda r: r.phase or "–"),
            ("clients", lambda r: number(r.batch, 0)),
            TOKENS_PER_S,
            ("TTFT p50 ms", functools.partial(cells.percentile, "ttft_ms", "p50")),
            ("TTFT p95 ms", functools.partial(cells.percentile, "ttft_ms", "p95")),
            ("TPOT p50 ms", functools.partial(cells.percentile, "tpot_ms", "p50")),
            ("TPOT p95 ms", functools.partial(cells.percentile, "tpot_ms", "p95")),
            ("errors", lambda r: number(r.errors, 0)),
            ("429", lambda r: number(r.refused, 0)),
            ("memory growth", lambda r: percent(r.memory_growth, 1)),
            ("share", lambda r: number(r.share, 2)),
            ("of what", lambda r: r.share_of or "–"),
        ),
        notes.serve_note,
    ),
    Section(
        "load",
        "Loading",
        (
            ENGINE,
            ("precision", lambda r: r.precision or "–"),
            ("loaded ms", lambda r: number(r.load_ms, 0)),
            ("first token ms", lambda r: number(r.first_token_ms, 0)),
            ("memory when loaded MB", lambda r: number(r.loaded_memory_mb, 0)),
            PEAK,
            SPEEDUP,
        ),
        notes.load_note,
        "Hugging Face generate() to the first token",
    ),
    Section(
        "evaluate",
        "Quality",
        (
            ("model", lambda r: r.model),
            ENGINE,
            ("text", lambda r: r.text or "–"),
            ("kind seen", lambda r: yes_or_no(r.seen_kind)),
            ("tokens", lambda r: number(r.tokens, 0)),
            PERPLEXITY,
            ("bits per byte", lambda r: number(r.bits_per_byte, 4)),
            ("KL to teacher", lambda r: number(r.kl, 4)),
            AGREEMENT,
            ("repetition", lambda r: percent(r.repetition, 1)),
            ("distinct-1", lambda r: percent(r.distinct_1, 1)),
            ("distinct-2", lambda r: percent(r.distinct_2, 1)),
        ),
        notes.evaluate_note,
    ),
    Section(
        "task",
        "Zero-shot tasks",
        (
            ("model", lambda r: r.model),
            ENGINE,
            HEADS,
            ("task", lambda r: r.text or "–"),
            ("items", lambda r: number(r.items, 0)),
            ("accuracy", cells.accuracy),
            ("chance", lambda r: percent(r.chance)),
        ),
        notes.task_note,
    ),
    Section(
        "sweep",
        "Quality by model, criterion and level",
        (
            ("model", lambda r: r.model),
            CRITERION,
            HEADS,
            NEURONS,
            COMPENSATED,
            ("seed", lambda r: number(r.seed, 0)),
            PERPLEXITY,
            OVER_DENSE,
            PARAMETERS,
        ),
        notes.sweep_note,
    ),
)


def section_of(suite: str) -> Section:
    """The section of a suite; one without charts for a suite that has none of its own."""
    return next((s for s in SECTIONS if s.suite == suite), Section(suite, suite.capitalize(), (ENGINE, *RUN, SPEEDUP)))
