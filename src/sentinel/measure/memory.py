"""Peak memory of one engine, measured in a process of its own, so that nothing else counts in."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel.infer.opening import is_kept, make_engine, open_engine
from sentinel.measure.child import ask

if TYPE_CHECKING:
    from sentinel.infer.native import NativeWeights


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
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

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
    device: str = "cpu"
    dtype: str = "fp32"


def measure_peak_memory(request: MemoryRequest, packed: NativeWeights | None = None) -> float | None:
    """Peak memory in MB of a process that generates as ``request`` says: resident, interpreter included, and on an
    accelerator what its tensors take there (None where PyTorch does not count it).

    On the CPU level 2 starts from the model, level 3 from what is kept of it, as a user would run them, and the loading
    counts; for the others the counter starts after loading. ``packed`` are the weights of level 3.
    """
    with tempfile.TemporaryDirectory() as scratch:
        level, precision = _level_of(request)
        if packed is not None and level == 3:
            source = level_3_source(request.model, request.random_weights, packed, Path(scratch) / "model")
            if source == request.model and not is_kept(source, precision):
                ask("sentinel.measure.memory", request, f"memory of {request.engine}")  # the start that quantises
            request = replace(request, model=source, random_weights=None)
        found = ask("sentinel.measure.memory", request, f"memory of {request.engine}")
        return None if found is None else float(found)


def level_3_source(source: str, random_weights: int | None, packed: NativeWeights, scratch: Path) -> str:
    """What a process of its own opens at level 3, as a user would: the model by its name, packed weights of which are
    kept after the first time; of random weights a quantised checkpoint, written to ``scratch``.
    """
    if random_weights is None:
        return source
    from sentinel.infer.quantised import save_quantised
    from sentinel.models.record import Record

    save_quantised(packed, {}, scratch, None, Record(weights="random"))
    return str(scratch)


def _level_of(request: MemoryRequest) -> tuple[int | None, str]:
    """Level and precision by the engine's name; no level for Hugging Face."""
    words = request.engine.split()
    return (int(words[1]), words[2] if len(words) > 2 else "fp32") if words[0] == "level" else (None, "fp32")


def _serve(request: MemoryRequest) -> None:
    from sentinel.infer.generate import generate_tokens
    from sentinel.progress import console

    console.quiet = True
    level, precision = _level_of(request)
    if request.device == "cpu" and level is not None and level >= 2:
        reset_peak()
        asked = {"level": level, "precision": precision, "random_weights": request.random_weights}
        opened = open_engine(request.model, **asked, dtype=None if level == 3 else request.dtype)
        prompts = _prompts(request, opened.engine.spec.vocab_size)
        list(generate_tokens(opened.engine, prompts, request.new_tokens))
        print(peak_rss_mb())
    else:
        print(json.dumps(_serve_torch(request)))


def _serve_torch(request: MemoryRequest) -> float | None:
    from sentinel.adapt.integration import integrate
    from sentinel.formats.sources import load
    from sentinel.infer.generate import Timings, generate_tokens
    from sentinel.measure.accelerator import device_peak_mb, reset_device_peak
    from sentinel.measure.hugging_face import ENGINE_NAME, HuggingFaceReference

    decoder = load(
        request.model, random_weights=request.random_weights, device=request.device, dtype=request.dtype
    ).decoder
    device = decoder.device
    on_host = device.type == "cpu"
    reset = reset_peak if on_host else lambda: reset_device_peak(device)
    if request.configuration is not None:
        decoder = integrate(decoder, request.configuration, rank=request.rank)
    prompts = _prompts(request, decoder.spec.vocab_size)
    if request.engine == ENGINE_NAME:
        reference = HuggingFaceReference(decoder)
        del decoder
        gc.collect()
        reset()
        reference.generate(prompts, request.new_tokens, Timings())
    else:
        runner = make_engine(decoder, int(request.engine.removeprefix("level ")))
        del decoder
        gc.collect()
        reset()
        list(generate_tokens(runner, prompts, request.new_tokens))
    return peak_rss_mb() if on_host else device_peak_mb(device)


def _prompts(request: MemoryRequest, vocab_size: int) -> list[list[int]]:
    return [[(7 * i + row) % vocab_size for i in range(request.prompt_tokens)] for row in range(request.batch)]


if __name__ == "__main__":
    _serve(MemoryRequest(**json.loads(sys.argv[1])))
