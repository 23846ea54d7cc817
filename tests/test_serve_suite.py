"""`sentinel bench serve` on a tiny model: every part has its row, and its table says so."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers import character_tokenizer
from serving import HANG, save_small

from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.measure import results
from sentinel.measure.results import ResultSet
from sentinel.measure.serving import client, peers
from sentinel.measure.serving.client import Heard
from sentinel.measure.serving.load import Load
from sentinel.measure.suites import serve
from sentinel.report.content import content_of

PARTS = [
    "clients", "clients", "soak", "prefix: first", "prefix: second", "stream alone", "stream beside a prompt", "overload",
    "overload, shedding",
]  # fmt: skip


def refusing(*_):
    raise InputError("theirs is left out: it is not there")


def test_every_part_is_measured_and_told(tmp_path, monkeypatch, capsys):
    folder = save_small(tmp_path / "small")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"a text of letters, number {number}, " * 40 for number in range(20)))
    for name, value in {"PREFIX": 80, "ENTERING": 90, "BESIDE": 40}.items():
        monkeypatch.setattr(serve, name, value)
    monkeypatch.setattr(serve, "PEER_SERVERS", (refusing,))
    monkeypatch.setattr(client, "LONGEST_S", HANG)
    file = tmp_path / "serve.json"
    options = ["--clients", "1,3", "--seconds", "1", "--soak", "1", "--rounds", "1", "--prompt-tokens", "20"]
    small = ["--new-tokens", "6", "--text", str(text), "--threads", "2", "--json", str(file)]
    assert main(["bench", "serve", str(folder), *options, *small]) == 0
    rows = ResultSet.read(file).results
    assert [row.phase for row in rows] == PARTS and [row.batch for row in rows][:3] == [1, 3, 3]
    assert all(row.errors == 0 for row in rows) and len({row.key for row in rows}) == len(rows)
    clients = rows[:3]
    assert all((row.tokens_per_s or 0) > 0 and row.percentiles["ttft_ms"]["p50"] == row.ttft_ms for row in clients)
    assert all(row.percentiles["tpot_ms"]["p50"] <= row.percentiles["tpot_ms"]["p95"] for row in clients)
    assert rows[2].memory_growth is not None
    by_part = {row.phase: row for row in rows}
    second, first = by_part["prefix: second"], by_part["prefix: first"]
    assert second.share == (second.ttft_ms or 0) / (first.ttft_ms or 1)
    beside, alone = (by_part[name].percentiles["tpot_ms"]["p95"] for name in ("stream beside a prompt", "stream alone"))
    assert by_part["stream beside a prompt"].share == beside / alone
    said = capsys.readouterr().out
    assert "TTFT p95 over overload" in said and "memory growth" in said
    assert "serve" in {section.suite for section in content_of(ResultSet.read(file)).sections}
    assert json.loads(file.read_text())["runs"]["serve"]["clients"] == [1, 3]


def test_rows_of_what_was_heard():
    good = [Heard(0.0, 200, [0.1, 0.2, 0.3], "abc", 3), Heard(0.0, 200, [0.2], "a", 1)]
    load = Load([*good, Heard(status=429), Heard(error="gone")], 9.0, n_wrong=1)
    row = serve.with_load(results.Result("serve", "m", "real", "e"), load)
    assert (row.ttft_ms, row.errors, row.refused) == (pytest.approx(150), 2, 1)
    assert row.tpot_ms == pytest.approx(100) and row.tokens_per_s == 9.0
    nothing = serve.with_load(row, Load([Heard(status=429)], 0.0))
    assert nothing.ttft_ms is None and nothing.tokens_per_s is None and nothing.refused == 1
    assert serve._over(nothing, row, "ttft_ms", "p95").share is None
    assert good[0].tokens_until(0.25) == 2 and dataclasses.replace(good[0], error="x").ended_well is False


def test_peers_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    for make, name in ((peers.llama_cpp, "llama_cpp, fastapi"), (peers.transformers, "transformers, fastapi")):
        with pytest.raises(Exception, match=f"is left out: {name}.* not installed"):
            make(None, character_tokenizer(), tmp_path, 2)  # pyright: ignore[reportArgumentType]
