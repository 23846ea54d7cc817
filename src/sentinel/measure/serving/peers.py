"""Servers of others with the same weights: llama.cpp's, and transformers' own. Each writes what it reads, and is started by
its own program. `InputError` names what is missing."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from sentinel.errors import InputError
from sentinel.formats.gguf.export import write_gguf
from sentinel.formats.hugging_face.export import write_hugging_face
from sentinel.measure.serving.servers import CHAT, HOST, ServerCommand
from sentinel.models.decoder import Decoder
from sentinel.models.tokenizer import TextTokenizer

Maker = Callable[[Decoder, TextTokenizer, Path, int], ServerCommand]  # in a folder, with so many threads
CONTEXT = 2048  # tokens of all that llama.cpp's server answers at once


def llama_cpp(decoder: Decoder, tokenizer: TextTokenizer, folder: Path, threads: int) -> ServerCommand:
    """llama-cpp-python's server of a GGUF file in Q8_0, which is its int8; it answers one request at a time."""
    name = "llama-cpp-python's server, Q8_0"
    _require(name, "llama_cpp", "fastapi", "sse_starlette", "pydantic_settings", "starlette_context")
    file = folder / "q8_0.gguf"
    write_gguf(decoder, tokenizer, file, "q8_0")
    limits = ["--n_threads", f"{threads}", "--n_threads_batch", f"{threads}", "--n_ctx", f"{CONTEXT}"]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--port", "{port}", *limits]
    return ServerCommand(name, command, precision="int8")


def transformers(decoder: Decoder, tokenizer: TextTokenizer, folder: Path, threads: int) -> ServerCommand:
    """``transformers serve`` in fp32, which batches continuously on CUDA alone."""
    name = "transformers serve, fp32"
    _require(name, "transformers", "fastapi", "uvicorn", "openai", "accelerate")
    program = shutil.which("transformers", path=str(Path(sys.executable).parent)) or shutil.which("transformers")
    if program is None:
        raise InputError(f"{name} is left out: there is no program 'transformers'")
    place = folder / "hugging-face"
    place.mkdir()
    write_hugging_face(decoder, tokenizer, place, "fp32")
    command = [program, "serve", "--port", "{port}", "--host", HOST, "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": f"{threads}", "HF_HUB_OFFLINE": "1"}
    return ServerCommand(name, command, CHAT, {"model": str(place)}, environment, precision="fp32")


PEER_SERVERS: tuple[Maker, ...] = (llama_cpp, transformers)


def _require(name: str, *modules: str) -> None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        raise InputError(f"{name} is left out: {', '.join(absent)} not installed")
