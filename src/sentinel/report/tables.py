"""Rows of results as tables of text: the same cells in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sentinel.measure.results import Result

SUITE_TITLES = {
    "decode": "Generation",
    "pruning": "Generation at every pruning level",
    "levels": "Optimisation levels, not pruned and pruned",
    "context": "Decoding after a long context",
    "batch": "Several sequences at once",
    "load": "Loading, and the first token",
    "peers": "Generation beside other engines",
    "attention": "Attention: head by head against fused",
    "quality": "Quality and speed after pruning heads",
    "evaluate": "Quality",
}


@dataclass(frozen=True)
class Table:
    """A heading, a sentence about how the numbers were made, column names, rows of text."""

    suite: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where it does not apply."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def ratio(result: Result) -> str:
    """The speed-up with its interval; "no difference" where the interval spans 1."""
    if result.speedup is None:
        return "–"
    if result.is_reference:
        return "1 (reference)"
    if result.no_difference:
        return "no difference"
    return f"{result.speedup:.2f}x ({result.speedup_low:.2f}–{result.speedup_high:.2f})"


def weights_note(results: Sequence[Result]) -> str:
    """Says of random weights that they are random."""
    if any(result.weights == "random" for result in results):
        return " Weights are random: the numbers tell speed only, never quality."
    return ""


def perplexity(result: Result) -> str:
    """A perplexity with its standard error."""
    if result.perplexity is None:
        return "–"
    return f"{result.perplexity:,.2f} ± {result.perplexity_stderr or 0:,.2f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3f}x" if value < 100 else f"{value:,.0f}x"


Column = tuple[str, Callable[[Result], str]]

DECODE_COLUMNS: list[Column] = [
    ("engine", lambda r: r.engine),
    ("tokens/s", lambda r: number(r.tokens_per_s)),
    ("TTFT ms", lambda r: number(r.ttft_ms)),
    ("TPOT ms", lambda r: number(r.tpot_ms)),
    ("roofline tokens/s", lambda r: number(r.roofline_tokens_per_s, 0)),
    ("MBU", lambda r: percent(r.mbu)),
    ("peak memory MB", lambda r: number(r.peak_memory_mb, 0)),
    ("speed-up", ratio),
    ("same tokens", lambda r: {True: "yes", False: "no", None: "–"}[r.same_tokens_as_reference]),
]

PEERS_COLUMNS: list[Column] = [
    ("weights", lambda r: r.precision or "–"),
    *(column for column in DECODE_COLUMNS if column[0] != "peak memory MB"),
]

ATTENTION_COLUMNS: list[Column] = [
    ("phase", lambda r: r.phase or "–"),
    ("tokens", lambda r: str(r.prompt_tokens)),
    ("engine", lambda r: r.engine.removeprefix("attention-")),
    ("heads removed", lambda r: percent(r.heads_pruned)),
    ("ms", lambda r: number(r.percentiles["total_ms"]["p50"], 3)),
    ("tokens/s", lambda r: number(r.tokens_per_s, 0)),
    ("speed-up", ratio),
]


def decode_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, greedy. "
        f"Median of {len(first.samples)} rounds, all engines in turn, after one warm-up round; the speed-up is over "
        f"{first.speedup_over} with its 95 % interval. Roofline: what the measured memory bandwidth allows for the bytes "
        f"of one step; MBU: the share reached. Peak memory: of a process of its own.{weights_note(results)}"
    )


def peers_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, greedy, "
        f"the same weights, prompts and threads for all. Median of {len(first.samples)} rounds, all engines in turn, after "
        f"one warm-up round; the speed-up is over {first.speedup_over} with its 95 % interval. MBU: the share of the "
        f"measured memory bandwidth that the bytes of a step, each engine's own, account for. "
        f"{_beside_peers(results)}{weights_note(results)}"
    )


def _beside_peers(results: Sequence[Result]) -> str:
    """Our time per token over that of the fastest other engine, for each precision that both have."""
    said = []
    for ours in (r for r in results if r.level is not None and r.tpot_ms):
        peers = [r for r in results if r.level is None and r.precision == ours.precision and r.engine != r.speedup_over]
        fastest = min((r for r in peers if r.tpot_ms), key=lambda r: r.tpot_ms or 0, default=None)
        if fastest is not None and fastest.tpot_ms and ours.tpot_ms:
            said.append(f"{ours.engine} takes {ours.tpot_ms / fastest.tpot_ms:.2f} of the TPOT of {fastest.engine}")
    return f"{'; '.join(said)}." if said else ""


def _mean_speedups(results: Sequence[Result]) -> str:
    said = []
    whole = [r for r in results if not r.heads_pruned and not r.is_reference and r.speedup]
    for phase in ("decode", "prefill"):
        ratios = [r.speedup or 1.0 for r in whole if r.phase == phase]
        if ratios:
            said.append(f"{phase} {sum(ratios) / len(ratios):.2f}x")
    return ", ".join(said)


def attention_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"One attention layer of {first.model}, batch {first.batch}. Phase decode: one new token that looks at that many "
        "cached ones; prefill: a whole sequence at once, where both run the same matrix products and only the overhead "
        f"differs. Median of {len(first.samples)} rounds, all in turn; the speed-up is over the original with its 95 % "
        f"interval. The original masks pruned heads, which saves nothing. Heads are removed in whole groups of the layer. "
        f"Mean speed-up with all heads: {_mean_speedups(results)}.{weights_note(results)}"
    )


PRUNED_COLUMNS: list[Column] = [
    ("engine", lambda r: r.engine),
    ("heads removed", lambda r: percent(r.heads_pruned)),
    ("neurons removed", lambda r: percent(r.neurons_pruned)),
    ("batch", lambda r: str(r.batch)),
    ("prompt tokens", lambda r: str(r.prompt_tokens)),
    ("tokens/s", lambda r: number(r.tokens_per_s)),
    ("TPOT ms", lambda r: number(r.tpot_ms)),
    ("roofline tokens/s", lambda r: number(r.roofline_tokens_per_s, 0)),
    ("MBU", lambda r: percent(r.mbu)),
    ("speed-up", ratio),
]

LOAD_COLUMNS: list[Column] = [
    ("engine", lambda r: r.engine),
    ("loaded after ms", lambda r: number(r.load_ms, 0)),
    ("first token after ms", lambda r: number(r.first_token_ms, 0)),
    ("memory loaded MB", lambda r: number(r.loaded_memory_mb, 0)),
    ("peak memory MB", lambda r: number(r.peak_memory_mb, 0)),
    ("speed-up", ratio),
]


def pruned_note(results: Sequence[Result]) -> str:
    """Of the suites that generate text with heads and neurons removed."""
    first = results[0]
    over = first.speedup_over if len({r.speedup_over for r in results}) == 1 else "the same engine, not pruned,"
    return (
        f"{first.model}, {first.new_tokens} new tokens, greedy; median of {len(first.samples)} rounds, all in turn, after "
        f"one of warm-up. The speed-up is over {over} with its 95 % interval. Heads and neurons are removed in random "
        "order: right for speed, which knows only counts. Roofline: what the measured bandwidth allows."
        f"{weights_note(results)}"
    )


def load_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}; a process of its own each, from its start: interpreter, imports, reading the files from the page "
        f"cache, {first.prompt_tokens} prompt tokens. Median of {len(first.samples)} rounds, in turn."
    )


QUALITY_COLUMNS: list[Column] = [
    ("criterion", lambda r: r.criterion or "not pruned"),
    ("heads removed", lambda r: percent(r.heads_pruned)),
    ("compensated", lambda r: {True: "yes", False: "no", None: "–"}[r.compensated]),
    ("perplexity", perplexity),
    ("over dense", lambda r: _times(r.perplexity_ratio)),
    ("tokens/s", lambda r: number(r.tokens_per_s)),
    ("speed-up", ratio),
    ("parameters", lambda r: number(r.parameters, 0)),
]

EVALUATE_COLUMNS: list[Column] = [
    ("model", lambda r: r.model),
    ("engine", lambda r: r.engine),
    ("tokens", lambda r: number(r.tokens, 0)),
    ("perplexity", perplexity),
    ("bits per byte", lambda r: number(r.bits_per_byte, 4)),
    ("KL to teacher", lambda r: number(r.kl, 4)),
    ("top-1 agreement", lambda r: percent(r.top1_agreement, 1)),
    ("repetition", lambda r: percent(r.repetition, 1)),
    ("distinct-1", lambda r: percent(r.distinct_1, 1)),
    ("distinct-2", lambda r: percent(r.distinct_2, 1)),
]


def quality_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}; perplexity on {first.text}, {first.tokens:,} tokens, context {first.context}; over dense: mean of "
        "the ratios on the texts. Calibration and these texts share no document. Speed: level 1, batch 1, "
        f"{first.prompt_tokens} prompt and {first.new_tokens} new tokens, median of {len(first.samples)} rounds, all "
        "ratios of a criterion in turn; the speed-up is over the model that is not pruned."
    )


def evaluate_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"Text: {first.text}; context {first.context}; heads removed {percent(first.heads_pruned)}. Perplexity with its "
        "standard error; repetition: sampled tokens that were among the 32 before."
    )


SUITES: dict[str, tuple[list[Column], Callable[[Sequence[Result]], str]]] = {
    "decode": (DECODE_COLUMNS, decode_note),
    "pruning": (PRUNED_COLUMNS, pruned_note),
    "levels": (PRUNED_COLUMNS, pruned_note),
    "context": (PRUNED_COLUMNS, pruned_note),
    "batch": (PRUNED_COLUMNS, pruned_note),
    "load": (LOAD_COLUMNS, load_note),
    "peers": (PEERS_COLUMNS, peers_note),
    "attention": (ATTENTION_COLUMNS, attention_note),
    "quality": (QUALITY_COLUMNS, quality_note),
    "evaluate": (EVALUATE_COLUMNS, evaluate_note),
}


def tables(results: Sequence[Result]) -> list[Table]:
    """One table per suite that has results."""
    made = []
    for suite, (columns, note) in SUITES.items():
        rows = [result for result in results if result.suite == suite]
        if rows:
            cells = [[cell(result) for _, cell in columns] for result in rows]
            made.append(Table(suite, SUITE_TITLES[suite], note(rows), [name for name, _ in columns], cells))
    return made


def to_markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines)
