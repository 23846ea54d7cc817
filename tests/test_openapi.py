"""``/openapi.json``: it describes what is read, and what is answered is as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import character_tokenizer
from serving import HANG, Server, asked, save_small

from sentinel.infer.grammar import Grammars
from sentinel.serve import bodies, embeddings, requests, responses
from sentinel.serve.declared import schema_of
from sentinel.serve.fields import Fields
from sentinel.serve.openapi import described
from sentinel.serve.paths import PATHS
from sentinel.serve.requests import Limits

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    negative_data_rejection,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder: Path = save_small(tmp_path_factory.mktemp("models") / "small")
    with Server(folder, "--level", "2", "--max-new-tokens", "3") as found:
        yield found


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.handler)
def test_what_is_answered_is_what_the_description_says(path, mode, api):
    """Of bodies that the description allows, and of those that it does not: never a 500."""
    if mode is GenerationMode.NEGATIVE and not path.body:
        pytest.skip("nothing is read, so that nothing can be wrong")
    operation = api[path.path.replace(":path", "")][path.method]

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case) -> None:
        statuses.add(case.call_and_validate(checks=CHECKS, timeout=HANG).status_code)

    statuses: set[int] = set()
    check()
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE and "{" not in path.path)


class Recorded(Fields):
    """Fields that tell which of them were asked for."""

    def __init__(self, body: object) -> None:
        super().__init__(body)
        self.names: set[str] = set()

    def get(self, name: str):
        self.names.add(name)
        return super().get(name)


LIMITS, LETTERS = Limits(64, 64, 64), character_tokenizer()
READ = [
    (bodies.COMPLETION, lambda f, *more: requests.completion(f, LETTERS, *more), {"prompt": "a"}),
    (bodies.EMBEDDING, lambda f, limits, _: embeddings.read(f, LETTERS, limits), {"input": "a"}),
]


@pytest.mark.parametrize(("body", "read", "given"), READ)
def test_all_that_is_read_is_described_and_all_that_is_described_is_read(body, read, given):
    fields = Recorded({"model": "small", **given})
    read(fields, LIMITS, Grammars(LETTERS, 97))
    assert fields.names | {"model"} == set(schema_of(body)["properties"])


def test_all_of_a_chat_and_of_a_response_is_described(monkeypatch):
    monkeypatch.setattr(requests, "chat_prompt", lambda fields, _: bodies.MESSAGES.of(fields) and [1])
    chat = Recorded({"model": "small", "messages": asked("a")})
    requests.chat(chat, LETTERS, LIMITS, Grammars(LETTERS, 97))
    assert chat.names | {"model"} == set(schema_of(bodies.CHAT)["properties"])
    response = Recorded({"model": "small", "input": "a"})
    responses.read(response, LETTERS, LIMITS, Grammars(LETTERS, 97))
    assert response.names == set(schema_of(bodies.RESPONSE)["properties"])


def test_every_path_is_described_and_has_a_handler(server):
    found = server.http.get("/openapi.json").json()
    assert found == json.loads(json.dumps(described("small", 97, False)))
    assert len(found["paths"]) == len(PATHS) and "/v1/models/{name}" in found["paths"]
    for path in PATHS:
        if path.method == "POST":
            assert server.http.get(path.path).status_code == 405
    needs_key = described("small", 97, True)["paths"]
    assert needs_key["/v1/models"]["get"]["security"] and "security" not in needs_key["/health"]["get"]


def test_what_a_description_calls_wrong_is_refused(server):
    kinds = {each.name: each.schema for each in bodies.COMPLETION if "minimum" in each.schema}
    assert len(kinds) >= 8
    for name, kind in kinds.items():
        for value in (kind["minimum"] - 1, kind["maximum"] + 1, "1"):
            body = {"model": "small", "prompt": "a", "max_tokens": 1, name: value}
            assert server.http.post("/v1/completions", json=body).status_code == 400, (name, value)
