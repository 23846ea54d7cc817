"""Parity, and then speeds, of several shapes with random weights on one accelerator; a JSON file for each, and a summary.

For each shape, in fp32 and then in bf16: greedy tokens of levels 1 and 2 against level 0's (fp32 must be equal, or nothing
is measured), launches and bandwidth per token, and the suites pruning, batch and context; what is left out is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sentinel.files import write_text
from sentinel.formats.sources import LoadedModel, load
from sentinel.infer.generate import generate_tokens
from sentinel.infer.opening import make_engine
from sentinel.measure import environment
from sentinel.measure.method import random_prompts
from sentinel.measure.profiling.device_use import device_use
from sentinel.measure.runner import run_suites
from sentinel.report.terminal import print_tables

SHAPES = ("gpt2", "gpt2-medium", "smollm2-135m", "llama-3.2-1b")
DTYPES = ("fp32", "bf16")
FULL: dict[str, dict[str, Any]] = {
    "pruning": {"levels": (1, 2), "heads": (0.0, 0.5), "prompt_tokens": 64, "new_tokens": 64, "rounds": 3},
    "batch": {"levels": (2,), "batches": (1, 8, 64, 256), "prompt_tokens": 64, "new_tokens": 16, "rounds": 3},
    "context": {"levels": (2,), "heads": (0.0, 0.5), "lengths": (64, 900), "batch": 64, "new_tokens": 8, "rounds": 3},
}
TINY: dict[str, dict[str, Any]] = {
    "pruning": {"levels": (1, 2), "heads": (0.0, 0.5), "prompt_tokens": 6, "new_tokens": 3, "rounds": 1},
    "batch": {"levels": (2,), "batches": (1, 2), "prompt_tokens": 6, "new_tokens": 3, "rounds": 1},
    "context": {"levels": (2,), "heads": (0.0, 0.5), "lengths": (8,), "batch": 2, "new_tokens": 2, "rounds": 1},
}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 where fp32 gives other tokens than level 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="names of known shapes, or folders")
    parser.add_argument("-o", "--output", default="accelerator", help="folder of the JSON files (default accelerator)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun later (default 8)")
    parser.add_argument("--tiny", action="store_true", help="a dry run: the smallest sizes")
    options = parser.parse_args(arguments)
    output, start = Path(options.output), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "environment": dataclasses.asdict(environment.describe(options.device)), "models": [], "left_out": [],
    }  # fmt: skip
    for shape in options.shapes.split(","):
        for dtype in DTYPES:
            if time.monotonic() - start > 60 * options.minutes:
                summary["left_out"].append(f"{shape} in {dtype}")
                continue
            found = _measured(shape, dtype, options.device, output, tiny=options.tiny)
            summary["models"].append(found)
            write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    summary["seconds"] = round(time.monotonic() - start, 1)
    write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(output / "summary.json")
    return 0 if all(m["parity"]["equal"] for m in summary["models"] if m["dtype"] == "fp32") else 1


def _measured(shape: str, dtype: str, device: str, output: Path, *, tiny: bool) -> dict[str, Any]:
    """What was found of one shape in one type; its rows are in a file of its own."""
    start = time.monotonic()
    loaded = load(shape, random_weights=0, device=device, dtype=dtype)
    parity = _parity(loaded, 6 if tiny else 32)
    print(
        f"{shape} {dtype}: {parity['alike']} of {parity['tokens']} greedy tokens of level 2 are level 0's", flush=True
    )
    found: dict[str, Any] = {"shape": shape, "dtype": dtype, "parity": parity, "use": []}
    if parity["equal"] or dtype != "fp32":
        found["use"] = _device_use(loaded, 4 if tiny else 64)
        name = f"{Path(shape).name}-{dtype}.json"
        results = run_suites(loaded, TINY if tiny else FULL, source=shape, random_weights=0, quick=True)
        results.write(output / name)
        print_tables(results.results)
        found["results"] = name
    found["seconds"] = round(time.monotonic() - start, 1)
    del loaded
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


def _parity(loaded: LoadedModel, new_tokens: int) -> dict[str, Any]:
    """Greedy tokens of levels 1 and 2 beside level 0's, until the first that differs."""
    prompts = random_prompts(loaded.spec.vocab_size, 2, 8)
    texts = {
        level: list(generate_tokens(make_engine(loaded.decoder, level), prompts, new_tokens)) for level in (0, 1, 2)
    }
    alike = {level: _alike(texts[0], texts[level]) for level in (1, 2)}
    return {
        "tokens": new_tokens,
        "alike": alike[2],
        "alike_level_1": alike[1],
        "equal": set(alike.values()) == {new_tokens},
    }


def _alike(one: list[Any], other: list[Any]) -> int:
    return next((count for count, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _device_use(loaded: LoadedModel, new_tokens: int) -> list[dict[str, Any]]:
    """Launches, bandwidth and memory of levels 1 and 2; nothing on the CPU."""
    if loaded.decoder.device.type == "cpu":
        return []
    (prompt,) = random_prompts(loaded.spec.vocab_size, 1, 64)
    uses = [device_use(make_engine(loaded.decoder, level), prompt, new_tokens) for level in (1, 2)]
    return [{**dataclasses.asdict(use), "mbu": use.mbu} for use in uses]


if __name__ == "__main__":
    sys.exit(main())
