"""The one finding of a table in plain words, computed from its rows: the first line of its section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sentinel.measure.results import UNPRUNED, Result
from sentinel.report.cells import engine_name, number, percent
from sentinel.report.verdicts import TOO_LITTLE, features_that_pay, paying

NOTHING = "Nothing to compare: there is one row, or none that was timed beside it."


def _pruned(row: Result) -> bool:
    return bool(row.heads_pruned or row.neurons_pruned)


def _fastest(rows: Iterable[Result]) -> Result | None:
    """The fastest of our own rows."""
    ours = [row for row in rows if row.level is not None and row.tokens_per_s]
    return max(ours, key=lambda row: row.tokens_per_s or 0.0, default=None)


def _over(row: Result) -> str:
    """How much faster than its reference a row is, or that it is not."""
    if row.speedup is None or row.is_reference:
        return ""
    if row.no_difference:
        return f", as fast as {engine_name(row.speedup_over)}"
    return f", {row.speedup:.2f}x {engine_name(row.speedup_over)}"


def _step(fewer: Result, whole: Result) -> float:
    """Speed of a row over that of another of the same table."""
    return (fewer.tokens_per_s or 0.0) / (whole.tokens_per_s or 1.0)


def fastest_engine(results: Sequence[Result]) -> str:
    """Of the suites that compare engines, none of them pruned."""
    best = _fastest(row for row in results if not _pruned(row))
    if best is None or len(results) < 2:
        return NOTHING
    memory = "" if best.peak_memory_mb is None else f", with {best.peak_memory_mb:,.0f} MB at its peak"
    return f"{engine_name(best.engine)} is the fastest: {number(best.tokens_per_s)} tokens/s{_over(best)}{memory}."


def what_removal_gives(results: Sequence[Result]) -> str:
    """Of the suites with pruned rows: the fastest engine, and the speed of its largest share of removed heads."""
    whole = _fastest(row for row in results if not _pruned(row))
    if whole is None:
        return NOTHING
    rows = [r for r in results if r.engine == whole.engine and r.heads_pruned and not r.neurons_pruned]
    most = max(rows, key=lambda row: row.heads_pruned or 0.0, default=None)
    if most is None or not most.tokens_per_s:
        return fastest_engine(results)
    return (
        f"{fastest_engine(results)[:-1]}; without {percent(most.heads_pruned)} of its heads it runs at "
        f"{_step(most, whole):.2f}x that speed."
    )


def what_quality_costs(results: Sequence[Result]) -> str:
    """Of perplexities: the best way at every share of heads, or what quantisation costs where nothing is pruned."""
    judged = [row for row in results if row.perplexity_ratio is not None]
    best: dict[float, Result] = {}
    for row in judged:
        if row.heads_pruned and row.precision in (None, "fp32") and not row.neurons_pruned:
            known = best.get(row.heads_pruned)
            if known is None or (row.perplexity_ratio or 0) < (known.perplexity_ratio or 0):
                best[row.heads_pruned] = row
    if best:
        costs = [f"{_change(best[share])} without {percent(share)} of the heads" for share in sorted(best)]
        ways = ", ".join(dict.fromkeys(str(row.criterion) for row in best.values()))
        return f"At its best (criterion {ways}), perplexity changes by {', '.join(costs)}."
    quantised = [row for row in judged if row.precision not in (None, "fp32") and not _pruned(row)]
    if not quantised:
        return NOTHING
    costs = [f"{_change(row)} with {row.precision} weights" for row in quantised]
    return f"Not pruned, perplexity changes by {', '.join(costs)}."


def _change(row: Result) -> str:
    assert row.perplexity_ratio is not None
    error = row.perplexity_ratio_stderr
    return f"{100 * (row.perplexity_ratio - 1):+.1f} %" + ("" if error is None else f" (± {100 * error:.1f})")


def what_features_give(results: Sequence[Result]) -> str:
    """Of skips and baseline integration: which of them pay, or what they cost in speed where nothing was judged."""
    said, names = features_that_pay(results), paying(results)
    if names:
        return f"Of skips and baseline integration, this pays: {', '.join(names)}."
    if said:
        untold = said.count(TOO_LITTLE)
        return (
            "Too little text was judged to tell what pays." if untold else "Neither skips nor baseline integration pay."
        )
    plain = {(r.level, r.heads_pruned): r for r in results if r.configuration == "minimal" and r.tokens_per_s}
    rows = [r for r in results if r.configuration == "all" and (r.level, r.heads_pruned) in plain and r.tokens_per_s]
    if not rows:
        return NOTHING
    shares = [_step(row, plain[row.level, row.heads_pruned]) for row in rows]
    return f"With both features the model runs at {_span(shares)} of the speed without them."


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}x", f"{max(values):.2f}x"
    return low if low == high else f"{low} to {high}"


def where_heads_pay(results: Sequence[Result]) -> str:
    """Of contexts: what the largest share of removed heads gives after the shortest and the longest prompt."""
    rows = [row for row in results if row.heads_pruned and row.speedup and row.prompt_tokens]
    if not rows:
        return NOTHING
    share = max(row.heads_pruned or 0.0 for row in rows)
    engine = rows[0].engine
    said = sorted(
        (r for r in rows if (r.heads_pruned, r.engine) == (share, engine)), key=lambda r: r.prompt_tokens or 0
    )
    ends = [said[0], said[-1]] if said[0].prompt_tokens != said[-1].prompt_tokens else said[:1]
    parts = [
        f"{'no faster' if r.no_difference else f'{r.speedup:.2f}x'} after {r.prompt_tokens:,} tokens" for r in ends
    ]
    return f"Without {percent(share)} of the heads, {engine_name(engine)} decodes {', '.join(parts)}."


def what_batches_give(results: Sequence[Result]) -> str:
    """Of batches: what the largest gives over one sequence."""
    best = _fastest(results)
    if best is None:
        return NOTHING
    alone = [row for row in results if row.engine == best.engine and row.tokens_per_s]
    least = min(alone, key=lambda row: row.batch or 0)
    if least.batch == best.batch:
        return f"{engine_name(best.engine)} is the fastest: {number(best.tokens_per_s)} tokens/s at batch {best.batch}."
    return (
        f"{engine_name(best.engine)} is the fastest: {number(best.tokens_per_s)} tokens/s of {best.batch} sequences, "
        f"{_step(best, least):.2f}x those of {least.batch}."
    )


def what_fusing_gives(results: Sequence[Result]) -> str:
    """Of one attention layer with all heads: the mean ratio, decoding and prefill."""
    said = []
    for phase, words in (("decode", "for a new token"), ("prefill", "for a whole prompt")):
        rows = [r for r in results if r.phase == phase and not r.heads_pruned and r.engine != r.speedup_over]
        ratios = [row.speedup for row in rows if row.speedup]
        if ratios:
            said.append(f"{sum(ratios) / len(ratios):.2f}x {words}")
    return f"With all heads, fused attention has this speed over head by head: {', '.join(said)}." if said else NOTHING


def what_adapting_costs(results: Sequence[Result]) -> str:
    """Of models of several sizes: the growth and the speed of the variant with everything."""
    rows = [row for row in results if row.growth is not None and row.speedup and not row.is_reference]
    if not rows:
        return NOTHING
    growth = max(row.growth or 0.0 for row in rows)
    speeds = _span([row.speedup or 0.0 for row in rows])
    return f"At most {percent(growth, 2)} more parameters, at {speeds} of the speed with gates alone."


def beside_peers(results: Sequence[Result]) -> str:
    """Our times over those of the fastest other engine, for each precision that both have and every kind of prompts."""
    results = [r for r in results if r.configuration != UNPRUNED]
    kinds = sorted({(r.batch or 1, r.prompt_tokens or 0) for r in results})
    said: list[str] = []
    for batch, length in kinds:
        rows = [r for r in results if (r.batch or 1, r.prompt_tokens or 0) == (batch, length)]
        ratios = [one for ours in rows if ours.level is not None for one in _over_fastest_peer(ours, rows)]
        if ratios:
            where = f"{batch} x {length} tokens: " if len(kinds) > 1 else ""
            said.append(where + "; ".join(ratios))
    return f"{'. '.join(said)}." if said else fastest_engine(results)


def _over_fastest_peer(ours: Result, rows: Sequence[Result]) -> list[str]:
    """A sentence per time that the fastest other engine of the same precision has too."""
    peers = [r for r in rows if r.level is None and r.precision == ours.precision and r.engine != r.speedup_over]
    said: list[str] = []
    for name in ("tpot_ms", "ttft_ms"):
        own: float | None = getattr(ours, name)
        fastest = min((r for r in peers if getattr(r, name)), key=lambda r: float(getattr(r, name)), default=None)
        if own and fastest is not None:
            share = own / float(getattr(fastest, name))
            label = name.removesuffix("_ms").upper()
            said.append(f"{ours.engine} takes {share:.2f} of the {label} of {fastest.engine}")
    return said


def how_fast_prompts_are_read(results: Sequence[Result]) -> str:
    """Of prefill: the most arithmetic that a thread did."""
    best = max((r for r in results if r.gops_per_thread), key=lambda r: r.gops_per_thread or 0, default=None)
    if best is None:
        return NOTHING
    return (
        f"{engine_name(best.engine)} does {best.gops_per_thread:,.0f} GOP/s per thread at {best.prompt_tokens} tokens."
    )


def what_clients_get(results: Sequence[Result]) -> str:
    """Of servers: the most tokens per second of ours, and over those of the others."""
    rows = [row for row in results if row.phase == "clients" and row.tokens_per_s]
    best = _fastest(rows)
    if best is None:
        return NOTHING
    said = f"{best.engine} gives {number(best.tokens_per_s)} tokens/s to {best.batch} clients"
    for name in dict.fromkeys(row.engine for row in rows if row.level is None):
        most = max(row.tokens_per_s or 0.0 for row in rows if row.engine == name)
        said += f", {(best.tokens_per_s or 0.0) / most:.2f}x the most of {name}"
    return f"{said}."


def how_soon_it_answers(results: Sequence[Result]) -> str:
    """Of loading: the first token of the quickest level."""
    ours = [row for row in results if row.level is not None and row.first_token_ms]
    best = min(ours, key=lambda row: row.first_token_ms or 0, default=None)
    if best is None or best.first_token_ms is None:
        return NOTHING
    seconds = best.first_token_ms / 1e3
    return f"{engine_name(best.engine)} gives its first token soonest, after {seconds:.1f} s{_over(best)}."


def how_good(results: Sequence[Result]) -> str:
    """Of an evaluation: its perplexities."""
    judged = [row for row in results if row.perplexity is not None]
    return (
        "; ".join(f"{row.model}: perplexity {number(row.perplexity, 2)}" for row in judged) + "." if judged else NOTHING
    )


def what_is_answered(results: Sequence[Result]) -> str:
    """Of tasks: how far each is above chance, in standard errors."""
    said = []
    for row in results:
        if row.accuracy is None or row.chance is None:
            continue
        spread = row.accuracy_stderr
        above = spread is not None and row.accuracy > row.chance + 2 * spread
        word = "above chance" if above or (spread is None and row.accuracy == 1) else "not told from chance"
        said.append(f"{row.text}: {word}")
    return "; ".join(said) + "." if said else NOTHING


FINDINGS: dict[str, Callable[[Sequence[Result]], str]] = {
    "levels": what_removal_gives,
    "decode": fastest_engine,
    "quality": what_quality_costs,
    "stored": what_quality_costs,
    "pruning": what_removal_gives,
    "integration": what_features_give,
    "context": where_heads_pay,
    "batch": what_batches_give,
    "attention": what_fusing_gives,
    "scaling": what_adapting_costs,
    "peers": beside_peers,
    "prefill": how_fast_prompts_are_read,
    "serve": what_clients_get,
    "load": how_soon_it_answers,
    "evaluate": how_good,
    "task": what_is_answered,
    "sweep": what_quality_costs,
}


def finding(suite: str, results: Sequence[Result]) -> str:
    """The finding of a suite's rows; of a suite without one of its own, which engine is the fastest."""
    said = FINDINGS.get(suite, fastest_engine)(results)
    return said[:1].upper() + said[1:]
