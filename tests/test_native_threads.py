"""The engine's threads: several engines, callers, forks, and the end of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import native_oracle as oracle
import numpy as np
import pytest
from conftest import spec_of
from helpers import filled_decoder
from native_oracle import TOKENS, engine_of

from sentinel.infer.native import NativeEngine, NativeWeights
from sentinel.infer.opening import make_engine


def test_two_engines_in_two_threads():
    spec, arrays = oracle.canonical(oracle.gpt2())
    engines = [engine_of(spec, arrays, threads=2) for _ in range(2)]
    exact = engines[0].score(TOKENS)
    results: dict[int, list] = {0: [], 1: []}

    def work(i):
        for _ in range(5):
            results[i].append(engines[i].score(TOKENS))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for found in results[0] + results[1]:
        np.testing.assert_array_equal(found, exact)


def test_one_engine_for_several_callers():
    spec, arrays = oracle.canonical(oracle.gpt2())
    engine = NativeEngine(NativeWeights.from_arrays(spec, arrays, "fp32"), threads=2)
    texts = [TOKENS[:5], TOKENS[:20], TOKENS]  # of other lengths, so that the room for them grows meanwhile
    exact = [NativeEngine(engine.packed, threads=1).score(text) for text in texts]
    found: list[bool] = []

    def work(i):
        found.extend(np.array_equal(engine.score(texts[i]), exact[i]) for _ in range(20))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert found == [True] * 60


NAPS = """
import ctypes, os, threading
import numba
import numpy as np
import native_oracle as oracle
from sentinel.infer.native import NativeEngine, NativeWeights

libc = ctypes.CDLL(None)
usleep = libc.usleep
usleep.argtypes, usleep.restype = [ctypes.c_uint32], ctypes.c_int32
SIGNAL, TGKILL = 10, {"x86_64": 234, "aarch64": 131}[os.uname().machine]

@numba.cfunc("void(int32)", nopython=True)
def nap(_):  # in the thread that the signal reaches, which is stopped meanwhile
    usleep(100_000)

libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.signal(SIGNAL, nap.address)
spec, arrays = oracle.canonical(oracle.gpt2())
tokens = oracle.TOKENS

def said(engine):
    found = [engine.score(tokens)]
    sequence = engine.open(tokens[:20], 30)[0]
    found += [engine.step([sequence], [token]) for token in tokens[:4]]
    return found

for precision in ("fp32", "int8"):
    weights = NativeWeights.from_arrays(spec, arrays, precision)
    exact = said(NativeEngine(weights, threads=1))
    for n_thread in (2, 3, 8):
        others = set(os.listdir("/proc/self/task"))
        engine = NativeEngine(weights, threads=n_thread)
        engine.score(tokens)
        pool = sorted(set(os.listdir("/proc/self/task")) - others)
        naps, over = [], threading.Event()

        def stop():
            while not over.is_set():
                for thread in pool:  # one at a time, the next when it has gone on
                    naps.append(libc.syscall(TGKILL, os.getpid(), int(thread), SIGNAL))
                    if over.wait(0.12):
                        break

        teaser = threading.Thread(target=stop)
        teaser.start()
        try:
            found = said(engine)
        finally:
            over.set()
            teaser.join()
        assert pool and naps.count(0) >= 1, (n_thread, pool, naps)
        for one, other in zip(found, exact, strict=True):
            np.testing.assert_array_equal(one, other)
        engine.release()
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals are sent to single threads on Linux")
def test_threads_that_are_stopped_for_a_while_change_nothing():
    """Each thread of the pool is stopped for 100 ms, again and again, while prompts are read and steps are made."""
    child = subprocess.run(
        [sys.executable, "-c", NAPS], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=600
    )
    assert child.returncode == 0 and "equal" in child.stdout, child.stderr[-3000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_an_engine_runs_on_after_a_fork(level):
    engine = make_engine(filled_decoder(spec_of("llama-grouped")), level, threads=2)
    engine.prefill([[t % 97 for t in TOKENS[:9]]], 4)
    before = engine.decode_one_token([5])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        os.write(writer, engine.decode_one_token([6]).tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = np.frombuffer(stream.read(), np.float32)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_allclose(found, engine.decode_one_token([6])[0], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(found, before[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_amid_another_callers_pass_leaves_a_child_that_runs():
    spec, arrays = oracle.canonical(oracle.gpt2())
    engine = NativeEngine(NativeWeights.from_arrays(spec, arrays, "fp32"), threads=2)
    exact, stop = engine.score(TOKENS), threading.Event()

    def work():
        while not stop.is_set():
            engine.score(TOKENS)

    other = threading.Thread(target=work)
    other.start()
    codes = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if np.array_equal(engine.score(TOKENS), exact) else 1)
        codes.append(os.waitpid(child, 0)[1])
    stop.set()
    other.join()
    assert codes == [0] * 10


def test_a_process_ends_while_engines_are_open():
    code = """
import threading, native_oracle as oracle
from sentinel.infer.native import NativeEngine, NativeWeights
spec, arrays = oracle.canonical(oracle.gpt2())
engine = NativeEngine(NativeWeights.from_arrays(spec, arrays, "fp32"), threads=2)
engine.score([1, 2, 3])
def work():
    while True:
        engine.score([1, 2, 3])
threading.Thread(target=work, daemon=True).start()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_more_threads_than_an_engine_takes_are_clamped(monkeypatch):
    spec, arrays = oracle.canonical(oracle.gpt2(n_layer=1))
    exact = engine_of(spec, arrays, threads=1).score(TOKENS[:4])
    monkeypatch.setattr("sentinel.infer.native.engine.physical_cores", lambda: 128)
    for engine in (engine_of(spec, arrays), engine_of(spec, arrays, threads=500)):
        assert engine.threads == 62
        np.testing.assert_array_equal(engine.score(TOKENS[:4]), exact)
        engine.release()
