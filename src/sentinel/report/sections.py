"""The sections of a report, one per suite: what it asks, its columns, how its numbers were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sentinel.measure.results import Result
from sentinel.report.cells import (
    Column,
    milliseconds,
    number,
    percent,
    perplexity,
    ratio,
    times,
    yes_or_no,
)
from sentinel.report.verdicts import features_that_pay

ENGINE: Column = ("engine", lambda r: r.engine)
HEADS: Column = ("heads removed", lambda r: percent(r.heads_pruned))
NEURONS: Column = ("neurons removed", lambda r: percent(r.neurons_pruned))
TOKENS_PER_S: Column = ("tokens/s", lambda r: number(r.tokens_per_s))
TTFT: Column = ("TTFT ms", lambda r: number(r.ttft_ms))
TPOT: Column = ("TPOT ms", lambda r: number(r.tpot_ms))
ROOFLINE: Column = ("roofline tokens/s", lambda r: number(r.roofline_tokens_per_s, 0))
MBU: Column = ("MBU", lambda r: percent(r.mbu))
PEAK: Column = ("peak memory MB", lambda r: number(r.peak_memory_mb, 0))
SPEEDUP: Column = ("speed-up", ratio)
PARAMETERS: Column = ("parameters", lambda r: number(r.parameters, 0))
GROWTH: Column = ("growth", lambda r: percent(r.growth, 3))
RUN = (TOKENS_PER_S, TTFT, TPOT, ROOFLINE, MBU)


@dataclass(frozen=True)
class Section:
    """A suite in a report. ``note`` says of its rows how they were made."""

    suite: str
    title: str
    columns: Sequence[Column]
    note: Callable[[Sequence[Result]], str] = field(default=lambda rows: generation_note(rows))


def weights_note(results: Sequence[Result]) -> str:
    """Says of random weights that they are random."""
    if any(result.weights == "random" for result in results):
        return " Weights are random: the numbers tell speed only, never quality."
    return ""


def rounds_note(results: Sequence[Result]) -> str:
    """How many samples, and what a speed-up is over."""
    first = next((r for r in results if r.samples), results[0])
    over = sorted({r.speedup_over for r in results if r.speedup_over})
    passes = f" in {first.passes} passes, far apart in the run" if (first.passes or 1) > 1 else ""
    return (
        f"Median of {len(first.samples)} rounds{passes}, all rows in turn, after one warm-up round; the speed-up is over "
        f"{' or '.join(over) or 'nothing'} with its 95 % interval."
    )


def generation_note(results: Sequence[Result]) -> str:
    """Of the suites that generate text."""
    first = results[0]
    return (
        f"{first.model}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, greedy. "
        f"{rounds_note(results)} Roofline: what the measured memory bandwidth allows for the bytes of one step; MBU: the "
        f"share reached.{weights_note(results)}"
    )


def more_bytes_note(results: Sequence[Result]) -> str:
    """Names the shares of heads without which a step reads more than with all of them, by the rooflines."""
    whole = {_shape(r): r.roofline_tokens_per_s for r in results if not r.heads_pruned and not r.neurons_pruned}
    shares = sorted(
        {
            r.heads_pruned
            for r in results
            if r.heads_pruned
            and not r.neurons_pruned
            and r.roofline_tokens_per_s
            and r.roofline_tokens_per_s < (whole.get(_shape(r)) or 0)
        }
    )
    if not shares:
        return ""
    return (
        f" Without {' or '.join(percent(share) for share in shares)} of the heads a step can read more bytes than with all "
        "of them, as the rooflines tell: grouped keys and values are repeated first, so that single heads can go."
    )


def _shape(result: Result) -> tuple[object, ...]:
    return (result.level, result.precision, result.batch, result.prompt_tokens)


def levels_note(results: Sequence[Result]) -> str:
    return f"{generation_note(results)}{more_bytes_note(results)}"


def decode_note(results: Sequence[Result]) -> str:
    return f"{generation_note(results)} Peak memory: of a process of its own."


def pruning_note(results: Sequence[Result]) -> str:
    return (
        f"{generation_note(results)} Heads and neurons are removed in random order here, which is right for speed, "
        f"since it knows only counts.{more_bytes_note(results)}"
    )


def context_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}, batch 1: tokens that are decoded after a prompt of that length, {first.new_tokens} a sample, the "
        f"prompt not timed. {rounds_note(results)} The reference of each level is that level, not pruned."
        f"{more_bytes_note(results)}{weights_note(results)}"
    )


def batch_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens each, greedy; tokens/s count "
        f"all sequences. {rounds_note(results)}{weights_note(results)}"
    )


def load_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"{first.model}: from the start of a process of its own, interpreter and imports included, files in the page "
        f"cache, {first.prompt_tokens} prompt tokens. {rounds_note(results)} Here it is of the time to the first token."
        f"{weights_note(results)}"
    )


def _mean_speedups(results: Sequence[Result]) -> str:
    said = []
    for phase in ("decode", "prefill"):
        whole = [r for r in results if r.phase == phase and not r.heads_pruned and r.engine != r.speedup_over]
        ratios = [r.speedup for r in whole if r.speedup]
        if ratios:
            said.append(f"{phase} {sum(ratios) / len(ratios):.2f}x")
    return ", ".join(said)


def attention_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"One attention layer of {first.model}, batch {first.batch}. Phase decode: one new token that looks at that many "
        "cached ones; prefill: a whole sequence at once, where both run the same matrix products and only the overhead "
        f"differs. {rounds_note(results)} The original masks pruned heads, which saves nothing. Heads are removed in whole "
        f"groups of the layer. Mean speed-up with all heads: {_mean_speedups(results)}.{weights_note(results)}"
    )


def quality_note(results: Sequence[Result]) -> str:
    first = results[0]
    tokens = "" if first.tokens is None else f", {first.tokens:,} tokens"
    timed = [r for r in results if r.samples]
    speed = "" if not timed else f" Speed: batch 1, {timed[0].prompt_tokens} prompt tokens. {rounds_note(timed)}"
    return (
        f"{first.model}; perplexity on {first.text}{tokens}, context {first.context}; over dense: mean of the ratios on "
        f"the texts. Calibration and these texts share no document.{speed}"
    )


def evaluate_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"Text: {first.text}; context {first.context}; heads removed {percent(first.heads_pruned)}. Perplexity with its "
        "standard error; repetition: sampled tokens that were among the 32 before."
    )


def integration_note(results: Sequence[Result]) -> str:
    first, steps = results[0], max(row.recovery_steps or 0 for row in results)
    quality = "Not recovered and not judged here: speed and parameters alone."
    if any(row.perplexity is not None for row in results):
        quality = (
            f"Perplexity in fp32 on {first.text} after the same recovery of every pruned configuration, at most {steps} "
            f"steps; not pruned, all compute what the plain model does. {features_that_pay(results)}"
        )
    return (
        f"{first.model}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, greedy. "
        "Original: the plain model head by head; all: U-Net skips and baseline integration; no-baseline: skips; no-unet: "
        "baseline; minimal: neither. Growth: the fusions' parameters over the plain model's; the frozen baseline, one more "
        f"model, is not counted. {rounds_note(results)} {quality}{weights_note(results)}"
    )


def scaling_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"Level {first.level}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, "
        "greedy. Gates: one per head, in every model here; all: U-Net skips and baseline integration too, at that rank. "
        "The frozen baseline, one more model, counts as memory and not as growth. The speed-up is over the model with "
        f"gates, of the same size. {rounds_note(results)}{weights_note(results)}"
    )


def peers_note(results: Sequence[Result]) -> str:
    return f"{generation_note(results)} The same weights, prompts and threads for all.{_beside_peers(results)}"


def _beside_peers(results: Sequence[Result]) -> str:
    """Our time per token over that of the fastest other engine, for each precision that both have."""
    said = []
    for ours in (r for r in results if r.level is not None and r.tpot_ms):
        peers = [r for r in results if r.level is None and r.precision == ours.precision and r.engine != r.speedup_over]
        fastest = min((r for r in peers if r.tpot_ms), key=lambda r: r.tpot_ms or 0, default=None)
        if fastest is not None and fastest.tpot_ms and ours.tpot_ms:
            said.append(f"{ours.engine} takes {ours.tpot_ms / fastest.tpot_ms:.2f} of the TPOT of {fastest.engine}")
    return f" {'; '.join(said)}." if said else ""


def sweep_note(results: Sequence[Result]) -> str:
    contexts = ", ".join(str(context) for context in sorted({r.context for r in results if r.context}))
    return (
        f"Perplexity on {results[0].text}, context {contexts}; over dense: mean of the ratios on the texts. Calibration "
        "and these texts share no document. No speeds: the jobs ran side by side."
    )


SECTIONS = (
    Section("levels", "Optimisation levels", (ENGINE, HEADS, *RUN, SPEEDUP), levels_note),
    Section(
        "decode",
        "Generation",
        (ENGINE, *RUN, PEAK, SPEEDUP, ("same tokens", lambda r: yes_or_no(r.same_tokens_as_reference))),
        decode_note,
    ),
    Section(
        "quality",
        "Quality after pruning and quantisation",
        (
            ("criterion", lambda r: r.criterion or "not pruned"),
            ("engine", lambda r: r.engine),
            HEADS,
            ("compensated", lambda r: yes_or_no(r.compensated)),
            ("perplexity", perplexity),
            ("over dense", lambda r: times(r.perplexity_ratio)),
            ("top-1 agreement", lambda r: percent(r.top1_agreement, 1)),
            TOKENS_PER_S,
            SPEEDUP,
            PARAMETERS,
        ),
        quality_note,
    ),
    Section("pruning", "Pruning: speed", (ENGINE, HEADS, NEURONS, PARAMETERS, *RUN, SPEEDUP), pruning_note),
    Section(
        "integration",
        "Skips and baseline integration",
        (
            ("configuration", lambda r: r.configuration or "–"),
            ("level", lambda r: number(r.level, 0)),
            HEADS,
            TOKENS_PER_S,
            SPEEDUP,
            ("perplexity", perplexity),
            ("over dense", lambda r: times(r.perplexity_ratio)),
            PARAMETERS,
            GROWTH,
        ),
        integration_note,
    ),
    Section(
        "context",
        "Long contexts: where removed heads pay",
        (("context", lambda r: number(r.prompt_tokens, 0)), ENGINE, HEADS, TOKENS_PER_S, TPOT, ROOFLINE, MBU, SPEEDUP),
        context_note,
    ),
    Section(
        "batch",
        "Several sequences at once",
        (("batch", lambda r: number(r.batch, 0)), ENGINE, *RUN, SPEEDUP),
        batch_note,
    ),
    Section(
        "attention",
        "Attention: head by head against fused",
        (
            ("phase", lambda r: r.phase or "–"),
            ("tokens", lambda r: number(r.prompt_tokens, 0)),
            ("implementation", lambda r: r.engine.removeprefix("attention-")),
            HEADS,
            ("ms", milliseconds),
            ("tokens/s", lambda r: number(r.tokens_per_s, 0)),
            SPEEDUP,
        ),
        attention_note,
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
        scaling_note,
    ),
    Section(
        "peers",
        "Beside other engines",
        (
            ENGINE,
            ("weights", lambda r: r.precision or "–"),
            *RUN,
            SPEEDUP,
            ("same tokens", lambda r: yes_or_no(r.same_tokens_as_reference)),
        ),
        peers_note,
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
        load_note,
    ),
    Section(
        "evaluate",
        "Quality",
        (
            ("model", lambda r: r.model),
            ENGINE,
            ("tokens", lambda r: number(r.tokens, 0)),
            ("perplexity", perplexity),
            ("bits per byte", lambda r: number(r.bits_per_byte, 4)),
            ("KL to teacher", lambda r: number(r.kl, 4)),
            ("top-1 agreement", lambda r: percent(r.top1_agreement, 1)),
            ("repetition", lambda r: percent(r.repetition, 1)),
            ("distinct-1", lambda r: percent(r.distinct_1, 1)),
            ("distinct-2", lambda r: percent(r.distinct_2, 1)),
        ),
        evaluate_note,
    ),
    Section(
        "sweep",
        "Quality by model, criterion and level",
        (
            ("model", lambda r: r.model),
            ("criterion", lambda r: r.criterion or "not pruned"),
            HEADS,
            NEURONS,
            ("compensated", lambda r: yes_or_no(r.compensated)),
            ("seed", lambda r: number(r.seed, 0)),
            ("perplexity", perplexity),
            ("over dense", lambda r: times(r.perplexity_ratio)),
            PARAMETERS,
        ),
        sweep_note,
    ),
)


def section_of(suite: str) -> Section:
    """The section of a suite; one without charts for a suite that has none of its own."""
    return next((s for s in SECTIONS if s.suite == suite), Section(suite, suite.capitalize(), (ENGINE, *RUN, SPEEDUP)))
