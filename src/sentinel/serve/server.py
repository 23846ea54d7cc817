"""A server from its start to its end: the socket, the event loop, and signals that end it in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from sentinel.errors import InputError
from sentinel.infer.batching import Batcher
from sentinel.serve.application import Service
from sentinel.serve.settings import ServeSettings

if TYPE_CHECKING:
    from sentinel.serve.page.routes import Page

LOOK_S = 0.05  # how often an ending server looks whether all answers are finished
LAST_S = 5.0  # for the last words of streams that were broken off


def bound_socket(settings: ServeSettings) -> socket.socket:
    """A socket at the address, which does not listen yet. Raises `InputError` for one that can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"host {settings.host} is unknown ({error.strerror or error})") from error
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # else a port stays taken for a minute after its last connection
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _unavailable(settings, error) from error
    return found


def _unavailable(settings: ServeSettings, error: OSError) -> InputError:
    place = f"port {settings.port} of {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return InputError(f"{place} is taken; give another --port, or 0 for a free one")
    return InputError(f"{place} can't be had ({error.strerror or error}); give another --host or --port")


def address_of(listening: socket.socket) -> str:
    """``http://host:port``."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end every stream in the middle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(
    batcher: Batcher,
    name: str,
    settings: ServeSettings,
    listening: socket.socket,
    ready: Callable[[str], None],
    page: Page | None = None,
) -> None:
    """Serve until a signal (SIGTERM, SIGINT); `ready` is told the address once requests are taken.

    Then new requests get 503, and answers under way have ``settings.grace_s`` to be finished; those that are not end with
    an error of that kind; a run of the ``page`` ends with its next token. A second signal ends all at once. ``batcher`` is
    closed. Raises `InputError` for a port that was taken meanwhile.
    """
    service = Service(batcher, name, settings, page)
    try:
        listening.listen(1024)
    except OSError as error:
        raise _unavailable(settings, error) from error
    try:
        asyncio.run(_serve(service, listening, ready))
    finally:
        listening.close()
        batcher.close()


async def _serve(service: Service, listening: socket.socket, ready: Callable[[str], None]) -> None:
    config = uvicorn.Config(
        service.application(),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(LAST_S),
    )
    server, stop = _Server(config), _Stop()
    with stop.on_signals():
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not (server.started or running.done()):
            await asyncio.sleep(0.01)
        if not running.done():
            ready(address_of(listening))
        ending = asyncio.create_task(stop.first.wait())
        await asyncio.wait((running, ending), return_when=asyncio.FIRST_COMPLETED)
        await _end(service, stop)
        server.should_exit = True
        ending.cancel()
        await running


async def _end(service: Service, stop: _Stop) -> None:
    """Let answers be finished, as long as there is time."""
    service.stopping = True
    service.batcher.refuse()
    latest = time.monotonic() + service.settings.grace_s
    while not service.batcher.idle and time.monotonic() < latest and not stop.second.is_set():
        await asyncio.sleep(LOOK_S)
    await asyncio.to_thread(service.batcher.close)


class _Stop:
    """Set by signals: the first asks for an end, the second for one at once."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @contextlib.contextmanager
    def on_signals(self) -> Generator[None, None, None]:
        """Hear signals inside; only the main thread can."""
        names = ("SIGINT", "SIGTERM") if threading.current_thread() is threading.main_thread() else ()
        before = {name: signal.signal(getattr(signal, name), self._heard) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
