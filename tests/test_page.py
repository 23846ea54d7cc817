"""`sentinel ui`: what the page's paths answer, and the page itself, driven in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser
from conftest import CONFIGS
from helpers import character_tokenizer, filled_decoder, refused, some_tokens
from synthetic_results import all_results

import sentinel
from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.api.model import load
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.batching import Batcher
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer
from sentinel.serve.page.engines import Dial, Engines, engines_of, masked_copy

pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from sentinel.serve.application import Service
from sentinel.serve.page.frontier import frontier_of
from sentinel.serve.page.routes import FILES, Page
from sentinel.serve.page.studio import Studio
from sentinel.serve.settings import ServeSettings

HALF = (0.5, 0.5)
ASKED = {"prompt": "some text", "level": 1, "precision": "fp32", "max_tokens": 12}
HALVED = {"heads": 0.5, "neurons": 0.5}


def saved_elastic(place: Path, **more: int) -> Path:
    """A tiny elastic model that stores a width of half its heads and neurons, with a tokenizer of characters."""
    spec = family_of("llama").spec_from_config({**CONFIGS["llama-grouped"], "max_position_embeddings": 128, **more})
    dense = expand_kv(filled_decoder(spec))
    pruner = Pruner(dense, PruningSettings("random", compensate=False, seed=4), None)
    order = pruner.order(*HALF)
    plan = order.plan(*HALF)
    made = make_elastic(dense, order, [plan], pruner.apply([plan]))
    save_checkpoint(made, place, TextTokenizer(character_tokenizer().fast, ()), Record())
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved_elastic(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def engines(folder) -> Engines:
    return engines_of(load(folder), 2)


def served(engines: Engines, key: str | None = None) -> Iterator[TestClient]:
    tokenizer, dial = TextTokenizer(character_tokenizer().fast, ()), engines.dial(None, None, (0.0, 0.0))
    with Studio(engines, tokenizer) as studio, Batcher(engines.engine(dial), tokenizer, max_batch=1) as batcher:
        service = Service(batcher, "small", ServeSettings(api_key=key), Page(studio, "small", dial, None))
        with TestClient(service.application()) as client:
            yield client


@pytest.fixture(scope="module")
def client(engines) -> Iterator[TestClient]:
    yield from served(engines)


def events(client: TestClient, **more: Any) -> list[dict[str, Any]]:
    response = client.post("/page/run", json={**ASKED, **more})
    assert response.status_code == 200, response.text
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]


def text_of(found: list[dict[str, Any]], side: str) -> str:
    return "".join(event["text"] for event in found if event["kind"] == "text" and event["side"] == side)


@pytest.mark.parametrize(("level", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "int8")])
def test_a_run_says_what_the_model_says_at_that_dial_and_unpruned(level, precision, client, folder):
    found = events(client, level=level, precision=precision, **HALVED)
    model = sentinel.load(folder)
    options = {"max_new_tokens": 12, "raw": True, "precision": precision}
    assert text_of(found, "chosen") == model.generate("some text", level=level, heads=0.5, neurons=0.5, **options)
    assert text_of(found, "unpruned") == model.generate("some text", max_new_tokens=12, raw=True)
    last = [event for event in found if event["kind"] == "text" and event["side"] == "chosen"][-1]
    assert last["tokens"] == 12 and last["tokens_per_s"] > 0 and last["memory_mb"] > 0
    assert (last["engine"], last["finish"]) == (f"level {level}" + (" int8" if level == 3 else ""), "length")
    assert [event["kind"] for event in found][-2:] == ["agreement", "done"]


def test_agreement_is_along_the_unpruned_models_words(client, engines):
    tokenizer = character_tokenizer()
    found = events(client, **HALVED)[-2]
    whole = engines.engine(engines.unpruned)
    prompt = tokenizer.encode("some text")
    said = prompt[:]
    for _ in range(12):
        said.append(int(whole.score(said, 1).argmax()))
    chosen = engines.engine(Dial(1, "fp32", HALF)).score(said[:-1], 12).argmax(axis=1)
    assert found == {
        "kind": "agreement",
        "share": float(np.mean(chosen == said[-12:])),
        "of": 12,
        "same": found["same"],
    }
    same = events(client)[-2]
    assert same == {"kind": "agreement", "share": 1.0, "of": 12, "same": 12}


def test_the_unpruned_text_is_made_once(client):
    first = events(client, prompt="another", **HALVED)
    again = events(client, prompt="another", **HALVED)
    assert text_of(first, "unpruned") == text_of(again, "unpruned") and text_of(first, "chosen") == text_of(
        again, "chosen"
    )
    assert [event.get("anew") for event in again if event.get("side") == "unpruned"] == [True]
    assert {event.get("side") for event in events(client, prompt="a third") if event["kind"] == "text"} == {"both"}


def test_masked_heads_are_gates_of_zero_and_nobody_elses(engines, folder):
    tokens = some_tokens(engines.spec, 1)
    decoder, oracle = load(folder).decoder, load(folder).decoder
    before = decoder(tokens)
    masked = masked_copy(decoder, [(0, 1), (2, 0), (2, 3)])
    with torch.no_grad():
        oracle.blocks[0].attn.gate[1] = 0
        oracle.blocks[2].attn.gate[[0, 3]] = 0
    assert torch.equal(masked(tokens), oracle(tokens)) and not torch.equal(masked(tokens), before)
    assert torch.equal(decoder(tokens), before)
    assert masked.embed.weight.data_ptr() == decoder.embed.weight.data_ptr()


def test_masks_change_a_run_and_the_next_one_is_without(client):
    plain, masked = events(client, **HALVED), events(client, masked=[[0, 0], [1, 1]], **HALVED)
    assert text_of(plain, "chosen") != text_of(masked, "chosen")
    assert text_of(events(client, **HALVED), "chosen") == text_of(plain, "chosen")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": 9}, "level must be from 0 to 3"),
        ({"level": None}, "level must be a whole number"),
        ({"precision": "int8"}, "level 1 int8 is not one of this model"),
        ({"heads": 0.3}, "width 0.3/0 is not stored; stored are 0/0, 0.5/0.5"),
        ({"masked": [[0, 99]]}, "no head 99 in layer 0"),
        ({"masked": [[0, -1]]}, "no head -1 in layer 0"),
        ({"masked": [[99, 0]]}, "no head 0 in layer 99"),
        ({"masked": [[0, True]]}, "pairs of layer and head"),
        ({"masked": [[0, 0]], "level": 2}, "masked at level 1, by their gates"),
        ({"masked": [[0, 5]], **HALVED}, "no head 5 in layer 0 at this width"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a" * 200}, "200 tokens, at most 128 are taken"),
        ({"prompt": "a" * 120}, "beyond the context of 128"),
        ({"max_tokens": 10**6}, "max_tokens must be from 1 to"),
        ({"chat": True}, "no chat template"),
    ],
)
def test_what_can_not_be_run_is_refused(change, said, client):
    found = client.post("/page/run", json={**ASKED, **change})
    assert found.status_code == 400 and said in found.json()["error"]["message"], found.text


def test_only_the_pages_own_files_are_free_of_the_key(engines):
    for client in served(engines, "secret"):
        for path in FILES:
            found = client.get(path)
            assert found.status_code == 200 and "'unsafe" not in found.headers["content-security-policy"]
            assert "default-src 'none'" in found.headers["content-security-policy"]
        assert client.get("/page/model").status_code == client.post("/page/run", json=ASKED).status_code == 401
        client.headers["authorization"] = "Bearer secret"
        assert client.get("/page/model").json()["name"] == "small" and events(client)[-1] == {"kind": "done"}
        plain = client.post("/page/run", content=json.dumps(ASKED), headers={"content-type": "text/plain"})
        assert plain.status_code == 415


def test_serve_has_no_page(engines):
    dial = engines.unpruned
    with Batcher(engines.engine(dial), TextTokenizer(character_tokenizer().fast, ()), max_batch=1) as batcher:
        client = TestClient(Service(batcher, "small", ServeSettings()).application())
        assert client.get("/").status_code == client.get("/page/model").status_code == 404


def test_a_quantised_model_has_its_level_and_its_widths(folder, tmp_path):
    sentinel.load(folder).quantize("int4", calibration=None).save(tmp_path / "int4")
    engines = engines_of(sentinel.load(tmp_path / "int4"), 2)
    assert engines.levels == ((3, "int4"),) and list(engines.widths) == [(0.0, 0.0), HALF]
    assert engines.dial(None, None, HALF) == Dial(3, "int4", HALF) and engines.unpruned == Dial(3, "int4")
    assert sum(engines.heads(HALF)) < sum(engines.heads((0.0, 0.0)))
    with pytest.raises(InputError, match="masked at level 1"):
        engines.engine(Dial(3, "int4", masked=frozenset({(0, 0)})))
    for client in served(engines):
        assert client.get("/page/model").json()["masking"] is None
        assert events(client, level=3, precision="int4", **HALVED)[-1] == {"kind": "done"}


def test_a_model_of_one_width_has_levels_only(worded):
    engines = engines_of(load(worded), 2)
    assert list(engines.widths) == [(0.0, 0.0)] and {level for level, _ in engines.levels} == {0, 1, 2, 3}
    assert engines.heads((0.0, 0.0)) == [layer.n_head for layer in engines.spec.layers]


def test_the_frontier_of_a_report(tmp_path):
    results = all_results()
    results.write(tmp_path / "results.json")
    found = frontier_of(str(tmp_path))
    assert found == frontier_of(str(tmp_path / "results.json")) and found.chart["width"] == "container"
    assert {"precision": "fp32", "heads": 0, "neurons": 0, "increase": 0.0} in found.known
    replace(results, results=[r for r in results.results if r.perplexity is None]).write(tmp_path / "speeds.json")
    with pytest.raises(InputError, match="knows speed and quality of no pruned"):
        frontier_of(str(tmp_path / "speeds.json"))


def test_what_is_wrong_is_told_before_the_model_is_loaded(capsys, tmp_path):
    assert "results.json can't be read" in refused(capsys, "ui", "no-such-model", "--port", "0", "--report", tmp_path)
    assert "give an --api-key" in refused(capsys, "ui", "no-such-model", "--host", "0.0.0.0")


# --- in a browser ---------------------------------------------------------------------------------------------------

STATUS = "document.querySelector('#status').textContent"
TEXTS = "['chosen', 'unpruned', 'chosen-said'].map((id) => document.getElementById(id).textContent)"
in_a_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Where ``sentinel ui`` runs, as a process of its own, with a report."""
    folder = saved_elastic(tmp_path_factory.mktemp("models") / "browsed")
    report = tmp_path_factory.mktemp("report")
    all_results().write(report / "results.json")
    command = [
        sys.executable,
        "-m",
        "sentinel",
        "ui",
        str(folder),
        "--port",
        "0",
        "--threads",
        "1",
        "--report",
        str(report),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/(?=,)", process.stdout.readline())
        assert found, process.communicate(timeout=300)
        yield found.group()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0 and "Traceback" not in told, told
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def page(address, tmp_path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as found:
        found.look(1280)
        found.open(address)
        found.until("document.documentElement.dataset.ready")
        yield found
        assert found.told == []
        assert found.requests and all(one.startswith(address) for one in found.requests)


def after(page: Browser, said: str) -> list[str]:
    """The texts after the run that a change to what ``said`` tells has begun."""
    page.until(TEXTS, lambda texts: said in texts[2])
    page.run("new Promise((resolve) => setTimeout(resolve, 300))")  # until a turned dial asks
    page.until(STATUS, lambda status: status == "Done.")
    return page.run(TEXTS)


@in_a_browser
def test_the_dial_is_moved_a_head_is_clicked_and_the_text_changes(page):
    page.click("#run")
    whole = after(page, "whole")
    assert whole[0] == whole[1] and page.run("document.querySelector('#agreement').textContent") == "100 %"
    page.run("document.querySelector('#dial').focus()")
    page.press("ArrowRight")
    half = after(page, "without 50 % of heads and 50 % of neurons")
    assert half[0] != whole[0] and half[1] == whole[1]
    assert page.run("document.querySelectorAll('#map button.removed').length") > 0
    page.click("#map button[data-layer='0'][data-head='0']")
    masked = after(page, "1 masked")
    assert masked[0] != half[0] and masked[1] == whole[1]
    page.press("Enter")  # the head has the focus
    page.until(TEXTS, lambda texts: "masked" not in texts[2])
    assert after(page, "without 50 %")[0] == half[0]
    page.press("ArrowDown", "ArrowRight", " ")
    assert page.run("document.querySelector('#map button.masked').ariaLabel") == "layer 1, head 1: masked"
    after(page, "1 masked")
    page.click("#levels .choices label:nth-child(4)")
    assert "Level 3 int8, without 50 %" in after(page, "Level 3 int8")[2]
    assert page.run("document.querySelectorAll('#map button.masked').length") == 0  # only level 1 masks
    page.until("document.querySelector('#frontier').dataset.points", lambda count: int(count or 0) >= 4)
    page.click("#map button[data-layer='0'][data-head='0']")
    after(page, "Level 1 fp32")
    page.click("#restore")
    page.until(TEXTS, lambda texts: "masked" not in texts[2])


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (768, "light"), (1280, "dark")])
def test_the_page_fits_and_is_readable(width, scheme, page):
    page.look(width, scheme=scheme)
    page.click("#run")
    after(page, "whole")
    page.until("document.querySelectorAll('#frontier svg path').length", lambda count: count > 5)
    root = "document.documentElement"
    assert page.run(f"[{root}.scrollWidth - {root}.clientWidth, innerWidth]") == [0, width]
    place = "document.querySelector('#map-place')"
    assert page.run(f"{place}.scrollWidth <= {place}.clientWidth")  # no part of the map is out of sight
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 31)" if scheme == "dark" else "rgb(255, 255, 255)")
    small = (
        "[...document.querySelectorAll('button, input, textarea')].filter((e) => e.offsetParent && e.offsetHeight < 13)"
    )
    assert page.run(f"{small}.map((element) => element.id)") == []
    named = "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length).map((e) => e.id)"
    assert page.run(named) == []


@in_a_browser
def test_a_run_is_stopped_and_begun_by_the_keyboard(page):
    page.run("document.querySelector('#tokens').value = 100, document.querySelector('#prompt').focus()")
    page.press("Enter", control=True)
    page.until(STATUS, lambda status: status != "")
    if page.run("document.querySelector('#run').textContent") == "Stop":
        page.click("#run")
    page.until(STATUS, lambda status: status in ("Stopped.", "Done."))
    page.run("document.querySelector('#prompt').value = 'a'.repeat(300)")
    page.click("#run")
    assert page.until(STATUS, lambda status: "taken" in status) == "the prompt has 300 tokens, at most 128 are taken"
    page.told.clear()  # the browser's own line on the 400


@in_a_browser
def test_a_server_that_is_gone_is_told(page):
    page.click("#run")
    after(page, "whole")
    gone = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.ask("Network.emulateNetworkConditions", **gone)
    page.click("#run")
    said = page.until(STATUS, lambda status: "reached" in status)
    assert said == "The server can’t be reached. Does it still run?"
    assert page.run("document.querySelector('#run').textContent") == "Run"
    page.ask("Network.emulateNetworkConditions", **{**gone, "offline": False})
    page.click("#run")
    after(page, "whole")
    page.told.clear()  # the browser's own line on the connection


@in_a_browser
def test_an_answer_that_breaks_off_is_not_called_done(page):
    broken = """fetch = async () => new Response('data: {"kind":"wait","for":"level 1"}\\n\\n')"""
    page.run(f"{broken}, 0")
    page.click("#run")
    page.until(STATUS, lambda status: status == "The server ended before the answer did.")
    assert page.run("document.querySelector('#chosen').dataset.empty") == "Press Run."


@in_a_browser
def test_a_key_is_asked_for(page):
    told = "document.querySelector('#key-said').textContent"
    page.run(
        'window.fetched = fetch, fetch = async () => new Response(\'{"error":{"message":"no"}}\', {status: 401}), 0'
    )
    page.run("document.querySelector('#key').hidden = false, document.querySelector('#key-text').value = 'wrong', 0")
    page.click("#key button")
    page.until(told, lambda said: said == "The server knows no such key.")
    page.run("fetch = window.fetched, 0")
