"""Servers as child processes on loopback: ours, and those of others with the same weights."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from sentinel.errors import InputError

READY_S = 300.0  # that a server may take to begin
LOOK_S = 0.1
HOST = "127.0.0.1"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/v1")


@dataclass(frozen=True)
class ServerCommand:
    """How a server is started: ``command`` with ``{port}`` in it, which is free, or 0 where it tells its own.

    Requests go to ``path`` and hold ``fields`` too; ``environment`` is added to ours.
    """

    name: str
    command: Sequence[str]
    path: str = COMPLETIONS
    fields: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    tells_port: bool = False

    def body(self, prompt: str, new_tokens: int) -> dict[str, Any]:
        """A greedy request."""
        said = {"messages": [{"role": "user", "content": prompt}]} if self.path == CHAT else {"prompt": prompt}
        return {**said, "max_tokens": new_tokens, "temperature": 0, **self.fields}


def our_server(
    source: str, random_weights: int | None, precision: str, threads: int | None, *more: str
) -> ServerCommand:
    """``sentinel serve`` at level 3 in that precision (fp32: level 2), as it comes."""
    level = ["--level", "2"] if precision == "fp32" else ["--level", "3", "--precision", precision]
    drawn = [] if random_weights is None else ["--random-weights", str(random_weights)]
    limited = [] if threads is None else ["--threads", str(threads)]
    command = [
        sys.executable,
        "-m",
        "sentinel",
        "serve",
        source,
        "--port",
        "0",
        "--name",
        "m",
        *level,
        *drawn,
        *limited,
    ]
    name = "level 2" if precision == "fp32" else f"level 3 {precision}"
    fields = {"model": "m", "ignore_eos": True, "stream_options": {"include_usage": True}}
    return ServerCommand(
        f"sentinel serve, {name}", [*command, *more], fields=fields, precision=precision, tells_port=True
    )


class RunningServer:
    """A server that was started; a context manager that ends it. Raises `InputError` for one that does not begin."""

    def __init__(self, server: ServerCommand) -> None:
        self.server = server
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `end`)
        port = 0 if server.tells_port else _free_port()
        command = [word.replace("{port}", str(port)) for word in server.command]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if server.tells_port else self._told,
            stderr=self._told,
            text=True,
            env={**os.environ, **server.environment},
        )
        try:
            self.port = self._told_port() if server.tells_port else self._answering(port)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._told.close()

    def memory_mb(self) -> float:
        """Resident memory of the process now."""
        return psutil.Process(self._process.pid).memory_info().rss / 1e6

    def _told_port(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := _ADDRESS.search(line):
                return int(found.group(1))
        raise self._failed()

    def _answering(self, port: int) -> int:
        latest = time.monotonic() + READY_S
        while time.monotonic() < latest and self._process.poll() is None:
            connection = http.client.HTTPConnection(HOST, port, timeout=10)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/v1/models")
                if connection.getresponse().status == 200:
                    return port
            time.sleep(LOOK_S)
        raise self._failed()

    def _failed(self) -> InputError:
        self._told.seek(0)
        said = (self._told.read().strip().splitlines() or ["it said nothing"])[-1]
        return InputError(f"{self.server.name} did not begin ({said:.200})")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return found.getsockname()[1]
