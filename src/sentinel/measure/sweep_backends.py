"""Where the jobs of a sweep run: processes of this machine, or a Ray cluster. Outcomes come as they are ready."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from sentinel.cores import physical_cores
from sentinel.errors import InputError
from sentinel.measure.sweep import Job, Outcome, SweepSettings, run_job
from sentinel.progress import console

LOST = (
    "a worker was killed, most likely for want of memory; jobs that are done are kept, so go on with --resume and fewer "
    "--workers"
)


Wanted = Callable[[Job], bool]  # asked just before a job would start


def in_processes(
    jobs: Sequence[Job], settings: SweepSettings, workers: int, wanted: Wanted = lambda _: True
) -> Iterator[Outcome]:
    """Run the ``wanted`` ones of ``jobs`` on ``workers`` processes, each with its share of the cores.

    A script that calls this needs the usual ``if __name__ == "__main__":``. Raises `InputError` when a worker was killed.
    """
    workers = max(1, min(workers, len(jobs)))
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    pool = ProcessPoolExecutor(workers, context, _start_worker, (max(1, physical_cores() // workers),))
    finished = False
    waiting, running = list(jobs), set[Future[Outcome]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                if wanted(job):
                    with _interrupts_kept_from_children():
                        running.add(pool.submit(run_job, settings, job))
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
        finished = True
    except BrokenProcessPool as error:
        raise InputError(LOST) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        for child in () if finished else multiprocessing.active_children():
            if child not in others:
                child.terminate()


def _start_worker(threads: int) -> None:
    _prepare(threads)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    console.quiet = True


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which a terminal sends to all; this one sees it right after."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def on_ray(
    jobs: Sequence[Job],
    settings: SweepSettings,
    workers: int,
    address: str | None = None,
    wanted: Wanted = lambda _: True,
) -> Iterator[Outcome]:
    """Run the ``wanted`` ones of ``jobs`` on Ray, ``workers`` at a time, each with its share of the cluster's cores.

    ``address`` names a running cluster ("auto": the one of this machine); without it, one is started here and ended
    after. On other machines sentinel is installed, and models and texts have the same names. Raises `InputError` without
    Ray, for a cluster that can't be reached, and when a worker was killed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import (  # pyright: ignore[reportMissingImports]
            OutOfMemoryError,
            RayTaskError,
            WorkerCrashedError,
        )
    except ImportError as error:
        raise InputError("the backend ray needs the extra 'ray': pip install 'sentinel-ai[ray]'") from error
    workers = max(1, min(workers, len(jobs)))
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers, address)
    try:
        threads = max(1, int(ray.cluster_resources().get("CPU", workers)) // workers)
        task = ray.remote(num_cpus=threads, max_retries=1)(_run_on_ray)
        waiting, running = list(jobs), []
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                if wanted(job):
                    running.append(task.remote(settings, job, threads))
            if running:
                ready, running = ray.wait(running)
                yield ray.get(ready[0])
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise InputError(LOST) from error
    except RayTaskError as error:
        if "failed to import" not in str(error):
            raise
        raise InputError("the cluster's workers can't import sentinel; install the same version there") from error
    finally:
        if ours:
            ray.shutdown()


def _refuse_dead_address(address: str) -> None:
    """Raise `InputError` where nothing listens: Ray itself would go on trying for minutes."""
    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"the Ray address {address!r} is not understood; give HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"the Ray cluster {address} can't be reached ({error}); see 'ray status' there") from error


def _connect(ray: Any, workers: int, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers wherever something else runs
    if address is not None:
        _refuse_dead_address(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            ray.init(address="local", num_cpus=max(physical_cores(), workers), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"the Ray cluster {address or 'local'} can't be reached ({said}); see 'ray status'") from error


def _run_on_ray(settings: SweepSettings, job: Job, threads: int) -> Outcome:
    _prepare(threads)
    return run_job(settings, job)
