"""What OpenAI's client asks of `sentinel serve` beside plain answers: forms, responses, embeddings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from helpers import byte_tokenizer
from serving import Server, asked, openai, save_small

pytest.importorskip("llguidance")
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = save_small(tmp_path_factory.mktemp("models") / "small", byte_tokenizer(), vocab_size=300)
    with Server(folder, "--level", "2", "--batch", "8") as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found


def test_answers_keep_to_a_schema_and_to_an_expression(client):
    schema = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    options = {"model": "small", "messages": asked("hello"), "max_tokens": 200}
    for temperature in (0, 1):
        found = client.chat.completions.create(response_format=schema, temperature=temperature, n=2, **options)
        assert all(json.loads(choice.message.content)["a"] in (1, 22) for choice in found.choices)
        assert {choice.finish_reason for choice in found.choices} == {"stop"}
    stream = client.chat.completions.create(
        extra_body={"response_format": {"type": "regex", "regex": "x[0-9]{3}y"}}, stream=True, **options
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert re.fullmatch("x[0-9]{3}y", text)
    found = client.completions.create(
        model="small", prompt="a", max_tokens=30, extra_body={"response_format": {"type": "json_object"}}
    )
    assert found.choices[0].text.lstrip()[0] == "{"


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nope"}}}, "invalid_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": []}}, "invalid_type"),
        ({"type": "json_schema"}, "invalid_type"),
        ({"type": "regex", "regex": "a("}, "invalid_schema"),
        ({"type": "regex"}, "invalid_type"),
        ({"type": "xml"}, "invalid_type"),
        ("json", "invalid_type"),
    ],
)
def test_a_form_that_is_none_is_a_clients_error(form, code, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="small", messages=asked("a"), response_format=form)
    assert refused.value.code == code and "response_format" in refused.value.param


def test_a_response_is_the_chat_whole_and_streamed(client):
    messages = [{"role": "system", "content": "be brief"}, *asked("hello")]
    options = {"model": "small", "temperature": 0}
    chat = client.chat.completions.create(messages=messages, max_tokens=20, **options)
    ask = {"input": "hello", "instructions": "be brief", "max_output_tokens": 20, **options}
    whole = client.responses.create(**ask)
    assert whole.output_text == chat.choices[0].message.content
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (chat.usage.prompt_tokens, 20)
    events = list(client.responses.create(stream=True, **ask))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output_text == events[-1].response.output_text
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    assert client.responses.create(**{**ask, "input": parts}).output_text == whole.output_text
    form = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA}}
    kept = client.responses.create(**{**ask, "max_output_tokens": 200}, text=form)
    assert json.loads(kept.output_text)["a"] in (1, 22) and kept.status == "completed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"instructions": 3}, "instructions"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "nope"}}}}, "response_format"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_a_response_that_can_not_be_is_a_clients_error(change, param, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": "small", "input": "a", **change})
    assert refused.value.param == param
