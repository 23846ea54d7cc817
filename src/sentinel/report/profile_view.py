"""A profile as a table in the terminal and as a chart."""

from __future__ import annotations

from typing import Any

import altair as alt

from sentinel.measure.profiling.device_use import DeviceUse
from sentinel.measure.profiling.profile import Profile
from sentinel.report.charts import WIDTH
from sentinel.report.terminal import new_table, stdout_console


def print_profile(profile: Profile, model: str, weights: str) -> None:
    """Print times and memory to stdout."""
    console = stdout_console()
    times = new_table(
        ["component", "ms per token", "share", "prefill ms"], f"{model}, {profile.engine}: time per component"
    )
    times.add_column("counted with it")
    for part in profile.components:
        times.add_row(part.name, f"{part.decode_ms:.3f}", f"{part.share:.1%}", f"{part.prefill_ms:.2f}", part.fused)
    console.print(times)
    console.print(_times_note(profile, weights), style="dim", markup=False)
    memory = new_table(["kind", "MB"], "Memory")
    memory.add_column("what is counted")
    for use in profile.memory:
        memory.add_row(use.name, f"{use.mb:,.2f}", use.note)
    console.print(memory)
    if profile.device_use is not None:
        console.print(_device_note(profile.device_use), markup=False)


def _times_note(profile: Profile, weights: str) -> str:
    random = " Weights are random; the speed does not depend on them." if weights == "random" else ""
    tokens = profile.rounds * (profile.new_tokens - 1)
    return (
        f"The parts add up to {profile.sum_ms:.3f} ms; a step takes {profile.step_ms:.3f} ms "
        f"profiled and {profile.unprofiled_step_ms:.3f} ms not profiled, in turn: {profile.overhead:+.1%}. Means of the "
        f"middle half of {tokens} tokens "
        f"after {profile.prompt_tokens} prompt tokens, batch 1. Measured by {profile.method}.{random}"
    )


def _device_note(use: DeviceUse) -> str:
    peak = "" if use.peak_mb is None else f" Tensors took {use.peak_mb:,.0f} MB at the most."
    return (
        f"On {use.device} a token takes {use.wall_ms:.3f} ms by the clock and {use.launches:.0f} launches, whose "
        f"{use.kernels:.0f} kernels run for {use.busy_ms:.3f} ms. It reads {use.read_gb_s:,.0f} GB/s at the least, "
        f"{use.mbu:.1%} of the {use.copy_gb_s:,.0f} GB/s of a copy.{peak}"
    )


def profile_chart(profile: Profile, model: str) -> Any:
    """Bars of milliseconds per component, of a decoded token and of the prefill."""
    rows = [
        {"component": part.name, "phase": phase, "ms": round(ms, 4), "share": share, "fused": part.fused or "–"}
        for phase, key in (("one token", "decode_ms"), (f"prefill of {profile.prompt_tokens}", "prefill_ms"))
        for part, ms, share in _shares(profile, key)
    ]
    order = [part.name for part in profile.components]
    bars = alt.Chart(alt.Data(values=rows)).mark_bar(cornerRadiusEnd=3)
    return (
        bars.encode(
            y=alt.Y("component:N", sort=order, title=None),
            x=alt.X("ms:Q", title="ms, interquartile mean"),
            color=alt.Color("phase:N", title=None, legend=None),
            tooltip=["component:N", "phase:N", "ms:Q", alt.Tooltip("share:Q", format=".1%"), "fused:N"],
        )
        .properties(width=WIDTH // 2, height={"step": 24})
        .facet(column=alt.Column("phase:N", title=f"{model}, {profile.engine}", sort=None))
        .resolve_scale(x="independent")
    )


def _shares(profile: Profile, key: str) -> list[tuple[Any, float, float]]:
    times = [getattr(part, key) for part in profile.components]
    total = sum(times)
    return [(part, ms, round(ms / total, 4)) for part, ms in zip(profile.components, times, strict=True)]
