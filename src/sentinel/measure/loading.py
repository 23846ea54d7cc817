"""Time and memory to load a model and to give a first token, in a process of its own, from its start."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sentinel.measure.child import ask
from sentinel.measure.memory import peak_rss_mb, reset_peak
from sentinel.measure.results import Sample

Kind = Literal["hugging-face", "sentinel", "quantised"]
FirstToken = Callable[[list[list[int]]], object]  # of prompts


@dataclass(frozen=True)
class LoadRequest:
    """What a process is to load, and after how many prompt tokens it gives the first one. ``started``: time.time().

    ``folder`` of a "quantised" one may be any name of a model: level 3 starts from what was kept of it.
    """

    kind: Kind
    folder: str
    prompt_tokens: int
    threads: int | None
    started: float = 0.0


def measure_load(kind: Kind, folder: Path | str, prompt_tokens: int, threads: int | None) -> Sample:
    """Milliseconds until the model is loaded and until the first token, interpreter and imports included; MB of memory.

    Raises `InputError` when the process fails.
    """
    request = LoadRequest(kind, str(folder), prompt_tokens, threads, time.time())
    return ask("sentinel.measure.loading", request, f"loading {folder}")


def _serve(request: LoadRequest) -> Sample:
    from sentinel.progress import console

    console.quiet = True
    reset_peak()
    prompt = [[7 * i % 50 for i in range(request.prompt_tokens)]]
    first_token = {"hugging-face": _hugging_face, "sentinel": _sentinel, "quantised": _quantised}[request.kind](request)
    loaded = time.time()
    loaded_mb = peak_rss_mb()
    first_token(prompt)
    done = time.time()
    return {
        "load_ms": (loaded - request.started) * 1e3,
        "ttft_ms": (done - loaded) * 1e3,
        "total_ms": (done - request.started) * 1e3,
        "loaded_mb": loaded_mb,
        "peak_mb": peak_rss_mb(),
    }


def _hugging_face(request: LoadRequest) -> FirstToken:
    import torch
    from transformers import AutoModelForCausalLM

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(request.folder)
    return lambda prompt: model.generate(
        torch.tensor(prompt, device="cpu"), max_new_tokens=1, do_sample=False, pad_token_id=0
    )


def _sentinel(request: LoadRequest) -> FirstToken:
    import torch

    from sentinel.formats.checkpoint import load_checkpoint
    from sentinel.infer.opening import make_engine

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    engine = make_engine(load_checkpoint(request.folder), 1)
    return lambda prompt: engine.prefill(prompt, 1)


def _quantised(request: LoadRequest) -> FirstToken:
    from sentinel.infer.opening import open_engine

    engine = open_engine(request.folder, level=3, precision="int8", threads=request.threads).engine
    return lambda prompt: engine.prefill(prompt, 1)


if __name__ == "__main__":
    print(json.dumps(_serve(LoadRequest(**json.loads(sys.argv[1])))))
