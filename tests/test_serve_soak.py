"""A short soak: 32 clients of a tiny model for ten seconds get what each prompt gets alone, and memory stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import HANG, save_small

from sentinel.errors import InputError
from sentinel.measure.serving import client
from sentinel.measure.serving.load import LoadOn
from sentinel.measure.serving.servers import RunningServer, our_server

PROMPTS = ["abc", "xyz" * 5, "hello " * 20, "q", "a long prompt of letters " * 15]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    monkeypatch.setattr(client, "LONGEST_S", HANG)


def test_a_soak_of_many_clients(small):
    with RunningServer(our_server(str(small), None, "fp32", 2)) as running:
        on = LoadOn(running, PROMPTS, 12)
        load, growth = on.soak(32, 10.0)
        assert len(load.good) >= 32 and (load.n_error, load.n_refused) == (0, 0)
        assert {one.n_token for one in load.good} == {12}
        assert growth < 0.05
        again = on.clients(4, 0.5)  # it goes on as before
        assert again.n_error == 0 and again.tokens_per_s > 0


def test_refused_and_failed_requests_are_counted_apart(small):
    with RunningServer(our_server(str(small), None, "fp32", 2, "--batch", "1", "--queue", "1")) as running:
        load = LoadOn(running, ["abc"], 200).overload(60.0, 1.0)
        assert load.n_refused > 0 and load.n_error == 0 and load.good
        assert load.n_refused + len(load.good) == len(load.heard)
        wrong = LoadOn(running, ["é" * 9000], 1).clients(1, 0.1)
        assert wrong.n_error == len(wrong.heard) > 0 and not wrong.good
    gone = LoadOn(running, ["abc"], 1).clients(1, 0.1)
    assert gone.n_error == len(gone.heard) > 0 and gone.heard[0].status == 0 and gone.heard[0].error


def test_a_server_that_does_not_begin_says_why(tmp_path):
    with pytest.raises(InputError, match="did not begin"):
        RunningServer(our_server(str(tmp_path / "nothing"), None, "fp32", 2))
