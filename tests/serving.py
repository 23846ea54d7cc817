"""What tests of a server share: a process of ``sentinel serve`` with a tiny model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS
from helpers import character_tokenizer, filled_decoder

from sentinel.formats.checkpoint import save_checkpoint
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

HANG = 300  # seconds after which a test would wait for ever
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant: "
CONTEXT = 8192


def save_small(folder: Path, tokenizer: TextTokenizer | None = None, **config: Any) -> Path:
    """A tiny model of a long context, by default with a tokenizer of characters, and a chat template."""
    spec: ModelSpec = family_of("llama").spec_from_config(
        {**CONFIGS["llama-grouped"], "max_position_embeddings": CONTEXT, **config}
    )
    found = tokenizer or character_tokenizer()
    with_template = TextTokenizer(found.fast, found.eos_ids, settings={"chat_template": TEMPLATE})
    save_checkpoint(filled_decoder(spec), folder, with_template, Record())
    return folder


def asked(text: str) -> list[Any]:
    """Messages of a chat with one question."""
    return [{"role": "user", "content": text}]


class Server:
    """``sentinel serve small --port 0`` with more arguments."""

    def __init__(self, folder: Path, *more: str) -> None:
        command = [sys.executable, "-m", "sentinel", "serve", str(folder), "--port", "0", "--threads", "2", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+(?=/v1$)", line.strip())
        assert found, (line, self.process.communicate(timeout=HANG))
        self.url = found.group()
        self.http = httpx.Client(base_url=self.url, timeout=HANG)

    def client(self, key: str = "none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=HANG)

    def figure(self, name: str) -> float:
        text = self.http.get("/metrics").text
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE).group(1))  # pyright: ignore

    def until(self, name: str, value: float) -> None:
        end = time.monotonic() + HANG
        while (found := self.figure(name)) != value:
            assert time.monotonic() < end, f"{name} stayed at {found}"
            time.sleep(0.01)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and stderr after a signal."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=HANG)
        return self.process.returncode, told

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
