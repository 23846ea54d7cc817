"""Peak memory of one engine, measured in a process of its own, so that nothing else counts in."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

from sentinel.errors import InputError


def reset_peak() -> None:
    """Start the kernel's peak counter anew, where there is one (Linux); elsewhere the peak is that of the process."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def peak_rss_mb() -> float:
    """Largest resident memory of this process since `reset_peak`, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure_peak_memory(
    model: str, random_weights: int | None, engine: str, prompt_tokens: int, new_tokens: int, batch: int = 1
) -> float:
    """Peak resident memory in MB while ``engine`` ("hf-generate" or "level N") generates, interpreter included.

    Loading is left out: the counter starts after it.
    """
    request = json.dumps([model, random_weights, engine, prompt_tokens, new_tokens, batch])
    command = [sys.executable, "-m", "sentinel.measure.memory", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"memory of {engine} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.strip().splitlines()[-1])


def _serve(request: str) -> None:
    from sentinel.infer.engines import make_engine
    from sentinel.infer.generate import Timings, generate_tokens
    from sentinel.measure.hugging_face import ENGINE_NAME, HuggingFaceReference
    from sentinel.models.sources import load
    from sentinel.progress import console

    console.quiet = True
    model, random_weights, engine, prompt_tokens, new_tokens, batch = json.loads(request)
    decoder = load(model, random_weights=random_weights).decoder
    prompts = [[(7 * i + row) % decoder.spec.vocab_size for i in range(prompt_tokens)] for row in range(batch)]
    if engine == ENGINE_NAME:
        reference = HuggingFaceReference(decoder)
        del decoder
        gc.collect()
        reset_peak()
        reference.generate(prompts, new_tokens, Timings())
    else:
        runner = make_engine(decoder, int(engine.removeprefix("level ")))
        del decoder
        gc.collect()
        reset_peak()
        list(generate_tokens(runner, prompts, new_tokens))
    print(peak_rss_mb())


if __name__ == "__main__":
    _serve(sys.argv[1])
