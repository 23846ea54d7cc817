"""A profile as a Chrome trace, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import json
from typing import Any

from sentinel.measure.profiling.profile import Profile


def chrome_trace(profile: Profile) -> str:
    """Trace Event Format (complete events, microseconds): the steps of the last round one after another."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"{profile.engine}, {profile.precision}"}}
    ]
    begin = 0.0
    for number, step in enumerate(profile.steps):
        for span in step.spans:
            whole = span is step.spans[0]
            name = ("prefill" if number == 0 else f"token {number + 1}") if whole else span.label
            events.append(
                {
                    "name": name,
                    "cat": "step" if whole else span.component,
                    "ph": "X",
                    "pid": 1,
                    "tid": 1,
                    "ts": round((begin + span.start_ms) * 1e3, 3),
                    "dur": round(span.total_ms * 1e3, 3),
                }
            )
        begin += step.total_ms
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"method": profile.method}})
