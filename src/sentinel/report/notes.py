"""How the numbers of a table were made, from its rows: what stands below its finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sentinel.measure.results import Result
from sentinel.report.cells import percent
from sentinel.report.verdicts import features_that_pay


def weights_note(results: Sequence[Result]) -> str:
    """Says of random weights that they are random."""
    if any(result.weights == "random" for result in results):
        return " Weights are random: the numbers tell speed only, never quality."
    return ""


def rounds_note(results: Sequence[Result]) -> str:
    """How many samples a number is of."""
    first = next((r for r in results if r.samples), results[0])
    passes = f" in {first.passes} passes, far apart in the run" if (first.passes or 1) > 1 else ""
    return (
        f"Median of {len(first.samples)} rounds{passes}, all rows in turn, after one warm-up round; "
        "speed-ups with their 95 % interval."
    )


def _numbers(values: Iterable[int | None]) -> str:
    """Those that there are, once each."""
    return ", ".join(f"{value:,}" for value in sorted({value for value in values if value is not None}))


def generation_note(results: Sequence[Result]) -> str:
    """Of the suites that generate text."""
    first = results[0]
    batches, prompts = _numbers(r.batch for r in results), _numbers(r.prompt_tokens for r in results)
    masked = any(r.level == 0 and r.heads_pruned for r in results)
    masks = (
        " Level 0 masks pruned heads, which saves nothing; every other level has really removed them." if masked else ""
    )
    return (
        f"{first.model}, batch {batches}, {prompts} prompt tokens, {first.new_tokens} new tokens, greedy. "
        f"{rounds_note(results)} {roofline_note(results)}{masks}{weights_note(results)}"
    )


def roofline_note(results: Sequence[Result]) -> str:
    """What the limit is, and why a row is above it."""
    note = "Roofline: what the measured read bandwidth allows for the bytes of one step; MBU: the share reached."
    if any(r.roofline == "cache" for r in results):
        note += " Cache: the bytes fit the last-level cache, so that memory sets no limit."
    above = sorted({r.mbu_note for r in results if r.mbu_note})
    return note + "".join(f" * {why}." for why in above)


def _step_size(result: Result) -> float | None:
    """What a step reads, in a unit that rows of one file share; older files have one bandwidth and only rooflines."""
    if result.step_bytes is not None:
        return result.step_bytes
    return 1 / result.roofline_tokens_per_s if result.roofline_tokens_per_s else None


def more_bytes_note(results: Sequence[Result]) -> str:
    """Names the shares of heads without which a step reads more than with all of them."""
    whole = {_shape(r): _step_size(r) for r in results if not r.heads_pruned and not r.neurons_pruned}
    shares = sorted(
        {
            r.heads_pruned
            for r in results
            if r.heads_pruned
            and not r.neurons_pruned
            and r.level != 0
            and (size := _step_size(r)) is not None
            and size > (whole.get(_shape(r)) or size)
        }
    )
    if not shares:
        return ""
    return (
        f" Without {' or '.join(percent(share) for share in shares)} of the heads a step can read more bytes than with all "
        "of them: grouped keys and values are repeated first, so that single heads can go."
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
        f"prompt not timed. {rounds_note(results)}"
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
        f"cache, {first.prompt_tokens} prompt tokens. {rounds_note(results)}"
        f"{weights_note(results)}"
    )


def attention_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"One attention layer of {first.model}, batch {first.batch}. Phase decode: one new token that looks at that many "
        "cached ones; prefill: a whole sequence at once, where both run the same matrix products and only the overhead "
        f"differs. {rounds_note(results)} Head by head, pruned heads would be masked, which saves nothing, so that it is "
        f"measured with all of them; the fused layer's are removed, in whole groups.{weights_note(results)}"
    )


def quality_note(results: Sequence[Result]) -> str:
    first = results[0]
    tokens = "" if first.tokens is None else f", {first.tokens:,} tokens"
    timed = next((r for r in results if r.samples), None)
    speed = "" if timed is None else f" Speed: batch 1, {timed.prompt_tokens} prompt tokens. {rounds_note(results)}"
    return (
        f"{first.model}; perplexity on {first.text}{tokens}, context {first.context}; over dense: geometric mean of the "
        f"ratios on the kinds of text. {seen_note(results)}{speed}"
    )


def seen_note(results: Sequence[Result]) -> str:
    """Whether the kinds of text were seen when models were made."""
    seen = {row.seen_kind for row in results}
    if True in seen:
        return (
            "Calibration has read other documents of these kinds, so that the rows flatter what was calibrated; nothing is "
            "recommended by them."
        )
    return "Calibration and these texts share no document" + (", and no kind." if seen == {False} else ".")


def evaluate_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"Text: {first.text}; context {first.context}; heads removed {percent(first.heads_pruned)}. Perplexity with its "
        "standard error; repetition: sampled tokens that were among the 32 before."
    )


def task_note(results: Sequence[Result]) -> str:
    """Of the project's own tasks."""
    return (
        "Items are made of texts that are kept to judge by; the likeliest continuation is the choice. Accuracy with its "
        "binomial standard error. No published score compares with these."
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
        "Head by head: the plain model at level 0, the reference; all: U-Net skips and baseline integration; no-baseline: "
        "skips; no-unet: baseline; minimal: neither. Growth: the fusions' parameters over the plain model's; the frozen "
        f"baseline, one more model, is not counted. {rounds_note(results)} {quality}{weights_note(results)}"
    )


def scaling_note(results: Sequence[Result]) -> str:
    first = results[0]
    return (
        f"Level {first.level}, batch {first.batch}, {first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, "
        "greedy. Gates: one per head, in every model here; all: U-Net skips and baseline integration too, at that rank. "
        "The frozen baseline, one more model, counts as memory and not as growth. "
        f"{rounds_note(results)}{weights_note(results)}"
    )


def prefill_note(results: Sequence[Result]) -> str:
    return (
        f"{results[0].model}, batch 1: from the prompt to the first new token. GOP/s: the operations that "
        "the model's sizes tell, over that time, which holds everything else too. "
        f"{rounds_note(results)}{weights_note(results)}"
    )


def peers_note(results: Sequence[Result]) -> str:
    said = f"{generation_note(results)} The same weights, prompts and threads for all."
    if all(row.saved_over_removed is None for row in results):
        return said
    return (
        f"{said} Time saved: the share of the unpruned model's TPOT that the pruned one saves in that engine, over the "
        "share of weight bytes per token that was removed, with its 95 % interval; 1 is all that the bytes promise."
    )


def serve_note(results: Sequence[Result]) -> str:
    """Of servers."""
    first = results[0]
    return (
        f"{first.model} over HTTP on loopback, client and server on one machine; prompts of {first.prompt_tokens} tokens "
        f"of real text, {first.new_tokens} new tokens, greedy; each client asks anew once it has its answer. Percentiles "
        "are of requests, those of a stream beside a prompt of the times between its tokens. Errors: answers that did not "
        f"come to their end, and in the soak those that differ from the prompt's alone.{weights_note(results)}"
    )


def sweep_note(results: Sequence[Result]) -> str:
    contexts = ", ".join(str(context) for context in sorted({r.context for r in results if r.context}))
    return (
        f"Perplexity on {results[0].text}, context {contexts}; over dense: geometric mean of the ratios on the kinds of "
        f"text. {seen_note(results)} No speeds: the jobs ran side by side."
    )
