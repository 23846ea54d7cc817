"""Peak memory of one engine, measured in a process of its own, so that nothing else counts in."""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.measure.child import ask

if TYPE_CHECKING:
    from sentinel.infer.engines import Engine


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


@dataclass(frozen=True)
class MemoryRequest:
    """What a process of its own is to load and to generate; ``engine`` is "hf-generate" or the name of an engine.

    ``configuration`` and ``rank`` add skips and a baseline, as `integrate` does; None leaves the model as it is.
    """

    model: str
    random_weights: int | None
    engine: str
    prompt_tokens: int
    new_tokens: int
    batch: int = 1
    configuration: str | None = None
    rank: int | None = None


def measure_peak_memory(request: MemoryRequest, engine: Engine | None = None) -> float:
    """Peak resident memory in MB of a process that generates as ``request`` says, interpreter included.

    Levels 2 and 3 run from a checkpoint of their own, as a user would run them, and the loading counts; for the others
    the counter starts after loading.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if engine is not None and engine.level >= 2:
            from sentinel.infer.cpu_engine import CpuEngine

            assert isinstance(engine, CpuEngine)
            file = Path(scratch) / "model.safetensors"
            engine.weights.save(file)
            request = replace(request, model=str(file), random_weights=None)
        return float(ask("sentinel.measure.memory", request, f"memory of {request.engine}"))


def _serve(request: MemoryRequest) -> None:
    from sentinel.infer.generate import generate_tokens
    from sentinel.progress import console

    console.quiet = True
    if request.engine.startswith(("level 2", "level 3")):
        from sentinel.infer.cpu_engine import CpuEngine
        from sentinel.infer.native import NativeWeights

        reset_peak()
        runner = CpuEngine(NativeWeights.load(request.model))
        list(generate_tokens(runner, _prompts(request, runner.spec.vocab_size), request.new_tokens))
    else:
        _serve_torch(request)
    print(peak_rss_mb())


def _serve_torch(request: MemoryRequest) -> None:
    from sentinel.adapt.integration import integrate
    from sentinel.infer.engines import make_engine
    from sentinel.infer.generate import Timings, generate_tokens
    from sentinel.measure.hugging_face import ENGINE_NAME, HuggingFaceReference
    from sentinel.models.sources import load

    decoder = load(request.model, random_weights=request.random_weights).decoder
    if request.configuration is not None:
        decoder = integrate(decoder, request.configuration, rank=request.rank)
    prompts = _prompts(request, decoder.spec.vocab_size)
    if request.engine == ENGINE_NAME:
        reference = HuggingFaceReference(decoder)
        del decoder
        gc.collect()
        reset_peak()
        reference.generate(prompts, request.new_tokens, Timings())
        return
    runner = make_engine(decoder, int(request.engine.removeprefix("level ")))
    del decoder
    gc.collect()
    reset_peak()
    list(generate_tokens(runner, prompts, request.new_tokens))


def _prompts(request: MemoryRequest, vocab_size: int) -> list[list[int]]:
    return [[(7 * i + row) % vocab_size for i in range(request.prompt_tokens)] for row in range(request.batch)]


if __name__ == "__main__":
    _serve(MemoryRequest(**json.loads(sys.argv[1])))
