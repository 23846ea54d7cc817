"""The limit of a decode step: how fast its bytes are read, beside every row, and what is told of it."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from conftest import spec_of
from helpers import filled_decoder
from synthetic_results import PLACE

from sentinel.errors import InputError
from sentinel.formats.sources import LoadedModel
from sentinel.infer.native.reading import PIECE, MemoryReader
from sentinel.measure.environment import last_level_cache_mb
from sentinel.measure.method import with_roofline
from sentinel.measure.results import Result, ResultSet
from sentinel.measure.runner import run_suites
from sentinel.models.record import Record
from sentinel.report.notes import roofline_note
from sentinel.report.sections import MBU, ROOFLINE

STEP = 50_000_000  # bytes
GENERATION = {"rounds": 2, "prompt_tokens": 4, "new_tokens": 2}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n_byte", [1000, PIECE, 3 * PIECE + 5000])
def test_every_byte_is_read_once_by_all_threads_together(threads, n_byte):
    reader = MemoryReader(threads)
    assert reader.seconds(n_byte) > 0
    whole = -(-n_byte // 1024) * 1024
    assert reader.sum_read() == whole // 8  # all values are 1
    reader.seconds(n_byte, repeats=3)
    assert reader.sum_read() == 3 * whole // 8
    reader.seconds(2 * n_byte)  # the area grows
    reader.seconds(n_byte)
    assert reader.sum_read() == whole // 8
    reader.close()


def row(tpots, rates, cache_mb=None, batch=1):
    samples = [{"tpot_ms": t, "total_ms": t, "read_gb_s": r} for t, r in zip(tpots, rates, strict=True)]
    plain = Result("decode", "m", "real", "level 2", batch=batch, samples=samples, passes=1)
    return with_roofline(plain, STEP, cache_mb)


def test_the_limit_is_that_of_the_readings_in_the_same_rounds():
    found = row((10.0, 10.0, 20.0, 10.0), (10.0, 10.0, 5.0, 10.0), batch=2)  # at 10 GB/s a step takes 5 ms
    assert found.bandwidth_gb_s == 10.0 and found.roofline == "memory" and found.step_bytes == STEP
    assert found.roofline_tokens_per_s == pytest.approx(2 * 200.0)
    assert found.mbu == pytest.approx(0.5) and found.mbu_note is None
    # a round in which everything was slow tells the same share
    assert row((10.0, 20.0, 10.0), (10.0, 5.0, 10.0)).mbu_low == pytest.approx(0.5)


def test_what_fits_the_cache_has_no_limit_of_memory():
    found = row((10.0,) * 3, (10.0,) * 3, cache_mb=STEP / 1e6)
    assert (found.roofline, found.roofline_tokens_per_s, found.mbu) == ("cache", None, None)
    assert found.bandwidth_gb_s == 10.0
    assert ROOFLINE[1](found) == "cache" and "fit the last-level cache" in roofline_note([found])
    assert row((10.0,) * 3, (10.0,) * 3, cache_mb=STEP / 1e6 - 1).roofline == "memory"


def test_above_the_limit_beyond_noise_is_explained():
    noisy = row((4.0, 6.0, 4.5, 6.0), (10.0, 10.0, 10.0, 10.0))
    assert noisy.mbu_note is None and MBU[1](noisy).endswith("%")
    above = row((4.0, 4.1, 4.2, 4.0), (10.0, 10.0, 10.0, 10.0))
    assert above.mbu > 1 and above.mbu_low > 1
    assert MBU[1](above).endswith("*") and above.mbu_note in roofline_note([noisy, above])


def test_every_row_is_read_beside_with_its_own_bytes(monkeypatch):
    asked: list[int] = []
    seconds = MemoryReader.seconds

    def noted(self, n_byte, repeats=1):
        asked.append(n_byte)
        return seconds(self, n_byte, repeats)

    monkeypatch.setattr(MemoryReader, "seconds", noted)
    monkeypatch.setattr("sentinel.measure.environment.last_level_cache_mb", lambda: 1e-6)
    loaded = LoadedModel("tiny", filled_decoder(spec_of("gpt2")), None, Record())
    wanted = {
        "levels": {**GENERATION, "levels": (1, 3), "heads": (0.0, 0.5)},
        "context": {"rounds": 2, "lengths": (8,)},
    }
    found = run_suites(loaded, wanted, source="tiny", threads=1)
    assert found.environment.bandwidth_gb_s is None and found.environment.last_level_cache_mb == 0.0
    for one in found.results:
        assert one.step_bytes in asked and one.roofline == "memory" and one.mbu > 0
        assert all(sample["read_gb_s"] > 0 for sample in one.samples)
        assert one.percentiles["read_gb_s"]["p50"] == pytest.approx(one.bandwidth_gb_s)
    sizes = {(one.engine, one.heads_pruned): one.step_bytes for one in found.results if one.suite == "levels"}
    assert sizes["level 3 int8", 0.0] < 0.5 * sizes["level 1", 0.0] == 0.5 * sizes["hf-generate", 0.0]
    assert sizes["level 1", 0.5] < sizes["level 1", 0.0]


def test_files_with_one_bandwidth_for_all_rows_are_read(tmp_path):
    new = ("step_bytes", "bandwidth_gb_s", "roofline", "mbu_low", "mbu_note")
    old = Result("decode", "m", "real", "level 1", roofline_tokens_per_s=50.0, mbu=0.8, tokens_per_s=40.0)
    body = json.loads(ResultSet(dataclasses.replace(PLACE, bandwidth_gb_s=21.5), [old]).to_json())
    for name in new:
        del body["results"][0][name]
    del body["environment"]["last_level_cache_mb"]
    (tmp_path / "old.json").write_text(json.dumps(body))
    found = ResultSet.read(tmp_path / "old.json")
    assert found.results == [old] and found.environment.bandwidth_gb_s == 21.5
    assert ROOFLINE[1](found.results[0]) == "50" and MBU[1](found.results[0]) == "80 %"


def test_passes_of_another_version_are_not_continued():
    loaded = LoadedModel("tiny", filled_decoder(spec_of("gpt2")), None, Record())
    kept: list[ResultSet] = []
    wanted = {
        "levels": {**GENERATION, "levels": (1,), "heads": (0.0,)},
        "batch": {**GENERATION, "levels": (1,), "batches": (1,)},
    }
    run_suites(loaded, wanted, source="tiny", threads=1, keep=kept.append)
    rows = [
        dataclasses.replace(one, samples=[{k: v for k, v in s.items() if k != "read_gb_s"} for s in one.samples])
        for one in kept[0].results
    ]
    with pytest.raises(InputError, match="another version"):
        run_suites(loaded, wanted, source="tiny", threads=1, resume=dataclasses.replace(kept[0], results=rows))


def test_last_level_caches_are_counted_once_each(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert last_level_cache_mb(tmp_path) is None
    for cpu in range(4):
        caches = (("1", "Instruction", "32K", cpu), ("1", "Data", "48K", cpu), ("2", "Unified", "1M", cpu))
        for index, (level, kind, size, shared) in enumerate((*caches, ("3", "Unified", "32768K", f"{cpu // 2}"))):
            place = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            place.mkdir(parents=True)
            for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
                (place / name).write_text(f"{text}\n")
    assert last_level_cache_mb(tmp_path) == pytest.approx(2 * 32 * 1.048576)
