"""`sentinel serve` over real HTTP on loopback: a process of its own with a tiny model, asked by OpenAI's client."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import HANG, Server, asked, httpx, openai, save_small

LONG = {"model": "small", "prompt": "abc", "max_tokens": 8000, "temperature": 0}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A tiny model of a long context, with a tokenizer of characters and a chat template."""
    return save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def server(small) -> Iterator[Server]:
    with Server(small, "--level", "2", "--batch", "8") as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found


def test_models_are_listed_and_found_by_name(server, client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("small").id == "small"
    assert server.http.get("/health").json() == {"status": "ok"}


def test_a_streamed_chat_is_the_whole_one(client):
    options = {"model": "small", "max_tokens": 40, "temperature": 0.8, "seed": 7, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(messages=asked("hello"), **options)
    stream = client.chat.completions.create(
        messages=asked("hello"), stream=True, stream_options={"include_usage": True}, **options
    )
    *chunks, last = list(stream)
    (choice,) = whole.choices
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == choice.finish_reason == "length"
    assert not last.choices and last.usage == whole.usage
    assert (whole.usage.completion_tokens, whole.usage.prompt_tokens) == (40, len("user: hello assistant: "))
    streamed = [entry.logprob for chunk in chunks if (found := chunk.choices[0].logprobs) for entry in found.content]
    assert streamed == [entry.logprob for entry in choice.logprobs.content] and len(streamed) == 40
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_completions_of_several_prompts_choices_and_token_ids(server, client):
    ids = server.http.post("/tokenize", json={"prompt": "abc"}).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": ids}).json()["prompt"].replace(" ", "") == "abc"
    options = {"model": "small", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    one = client.completions.create(prompt="abc", **options)
    several = client.completions.create(prompt=["abc", "xyz"], n=2, **options)
    same = client.completions.create(prompt=ids, **options)
    assert one.choices[0].text == same.choices[0].text == several.choices[0].text == several.choices[1].text
    assert several.choices[2].text == several.choices[3].text != one.choices[0].text
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.prompt_tokens == 6 and several.usage.completion_tokens == 48
    chances = one.choices[0].logprobs
    assert [max(top.values()) for top in chances.top_logprobs] == chances.token_logprobs  # greedy takes the likeliest
    cut = client.completions.create(prompt="abc", stop=one.choices[0].text[4:7], **options)
    assert one.choices[0].text.startswith(cut.choices[0].text) and cut.choices[0].finish_reason == "stop"
    assert one.choices[0].text[4:7] not in cut.choices[0].text


def test_eight_greedy_answers_at_once_are_those_alone(client):
    def ask(number: int) -> str:
        found = client.completions.create(model="small", prompt="abc" * (1 + 20 * number), max_tokens=60, temperature=0)
        return found.choices[0].text

    alone = [ask(number) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
    assert len(set(alone)) > 1


GOOD = {"model": "small", "prompt": "abc", "max_tokens": 2}
WRONG = [
    ("/v1/completions", {"prompt": "a\ud800"}, 400, "invalid_json"),
    ("/v1/completions", {"temperature": 10**400}, 400, "invalid_value"),
    ("/v1/completions", {"logit_bias": {"9" * 5000: 1}}, 400, "invalid_type"),
    ("/v1/completions", {"logit_bias": {"\u0663": 1}}, 400, "invalid_type"),
    ("/v1/chat/completions", {"messages": [{"role": "\ud800", "content": "\udfff"}]}, 400, "invalid_json"),
    ("/tokenize", {"prompt": "\ud800"}, 400, "invalid_json"),
    ("/v1/completions", {"model": "other"}, 404, "model_not_found"),
    ("/v1/completions", {"model": None}, 400, "invalid_type"),
    ("/v1/completions", {"prompt": {"a": 1}}, 400, "invalid_type"),
    ("/v1/completions", {"prompt": []}, 400, "invalid_type"),
    ("/v1/completions", {"prompt": ""}, 400, "invalid_value"),
    ("/v1/completions", {"prompt": [97]}, 400, "invalid_value"),
    ("/v1/completions", {"prompt": "a" * 9000}, 400, "context_length_exceeded"),
    ("/v1/completions", {"max_tokens": 8190}, 400, "context_length_exceeded"),
    ("/v1/completions", {"max_tokens": "2"}, 400, "invalid_type"),
    ("/v1/completions", {"temperature": 3}, 400, "invalid_value"),
    ("/v1/completions", {"top_p": 0}, 400, "invalid_value"),
    ("/v1/completions", {"stop": [""]}, 400, "invalid_type"),
    ("/v1/completions", {"n": 99}, 400, "invalid_value"),
    ("/v1/completions", {"logit_bias": {"x": 1}}, 400, "invalid_type"),
    ("/v1/completions", {"logit_bias": {"97": 1}}, 400, "invalid_value"),
    ("/v1/completions", {"echo": True}, 400, "unsupported_parameter"),
    ("/v1/completions", {"stream": 1}, 400, "invalid_type"),
    ("/v1/chat/completions", {}, 400, "invalid_type"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "invalid_type"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "invalid_value",
    ),
    ("/v1/chat/completions", {"messages": asked("a"), "tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
    ("/v1/nothing", {}, 404, "not_found"),
    ("/v1/models", {}, 405, "method_not_allowed"),
    ("/detokenize", {"tokens": [97]}, 400, "invalid_type"),
]


@pytest.mark.parametrize(("path", "change", "status", "code"), WRONG)
def test_errors_have_their_status_and_openais_shape(path, change, status, code, server):
    body = json.dumps({**GOOD, **change})  # in ASCII: what is no text must be written with escapes
    found = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert (found.status_code, found.json()["error"]["code"]) == (status, code), found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"} and found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * 5_000_000, "application/json", 413),
    ],
)
def test_bodies_that_are_none_are_refused(body, kind, status, server):
    found = server.http.post("/v1/completions", content=body, headers={"content-type": kind})
    assert found.status_code == status and found.json()["error"]["message"]


def test_every_response_has_an_id(server):
    assert server.http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    first, second = (server.http.get("/nothing", headers={"x-request-id": "a b"}) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_sequence(stream, server):
    cancelled = 'sentinel_answers_total{finish="cancelled"}'
    before, tokens = server.figure(cancelled), server.figure("sentinel_generated_tokens_total")
    with httpx.Client(base_url=server.url, timeout=HANG) as other:
        if stream:
            with other.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                other.post("/v1/completions", json=LONG, timeout=0.05)
    server.until(cancelled, before + 1)
    server.until("sentinel_sequences_active", 0)
    assert server.figure("sentinel_generated_tokens_total") - tokens < LONG["max_tokens"]


def test_the_figures_tell_of_times_and_tokens(server, client):
    before = server.figure("sentinel_generated_tokens_total"), server.figure("sentinel_prompt_tokens_total")
    client.completions.create(model="small", prompt="abcde", max_tokens=7)
    after = server.figure("sentinel_generated_tokens_total"), server.figure("sentinel_prompt_tokens_total")
    assert (after[0] - before[0], after[1] - before[1]) == (7, 5)
    assert server.figure("sentinel_time_to_first_token_seconds_count") > 0
    assert server.figure("sentinel_time_per_output_token_seconds_sum") > 0
    assert server.figure('sentinel_http_responses_total{path="/v1/completions",status="200"}') > 0


def test_the_next_turn_of_a_chat_is_read_from_where_the_last_one_ended(server, client):
    before = server.figure("sentinel_prompt_tokens_reused")
    first = client.chat.completions.create(model="small", messages=asked("a question of mine"), max_tokens=9, seed=1)
    turns = [*asked("a question of mine"), {"role": "assistant", "content": first.choices[0].message.content}]
    client.chat.completions.create(model="small", messages=[*turns, *asked("and more")], max_tokens=9)
    assert server.figure("sentinel_prompt_tokens_reused") - before >= len("user: a question of mine assistant: ")
    assert server.figure("sentinel_cache_bytes") > 0


def test_a_full_queue_is_429_and_a_key_is_asked_for(small):
    with Server(
        small, "--level", "2", "--batch", "1", "--queue", "1", "--api-key", "secret", "--max-prompt", "50"
    ) as server:
        assert server.http.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            found = server.http.get("/v1/models", headers=headers)
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        server.http.headers["authorization"] = "Bearer secret"
        client = server.client("secret")
        with pytest.raises(openai.BadRequestError, match="51 tokens, at most 50"):
            client.completions.create(model="small", prompt="a" * 51)
        streams = [client.completions.create(stream=True, **LONG)]
        server.until("sentinel_sequences_active", 1)
        streams.append(client.completions.create(stream=True, **LONG))
        with pytest.raises(openai.RateLimitError, match="1 requests wait, of at most 1") as full:
            client.completions.create(**LONG)
        assert full.value.response.headers["retry-after"] == "1"
        for stream in reversed(streams):
            stream.close()
        server.until('sentinel_answers_total{finish="cancelled"}', 2)


def test_sigterm_lets_answers_be_finished_and_takes_no_more(small):
    with Server(small, "--level", "2", "--grace", str(HANG)) as server:
        streams = [server.client().completions.create(stream=True, **LONG) for _ in range(3)]
        firsts = [next(iter(stream)) for stream in streams]
        ended: list = []
        ending = threading.Thread(target=lambda: ended.append(server.end()))
        ending.start()
        statuses = set()
        while ending.is_alive() and 503 not in statuses:
            try:
                statuses.add(server.http.post("/v1/completions", json=GOOD).status_code)
            except httpx.TransportError:
                break
        assert 503 in statuses
        for first, stream in zip(firsts, streams, strict=True):
            chunks = [first, *stream]
            assert chunks[-1].choices[0].finish_reason == "length"
        ending.join(HANG)
        assert ended[0][0] == 0, ended


def test_sigterm_without_grace_ends_streams_with_a_reason(small):
    with Server(small, "--level", "2", "--grace", "0", "--batch", "4") as server:
        streams = [server.client().completions.create(stream=True, **LONG) for _ in range(6)]
        server.until("sentinel_sequences_active", 4)
        code, told = server.end()
        for stream in streams:
            with pytest.raises(openai.APIError, match="shuts down"):
                list(stream)
        assert code == 0 and "Traceback" not in told, told


def test_a_taken_port_and_an_open_address_are_one_sentence(server, small):
    def refused(*more: str) -> str:
        command = [sys.executable, "-m", "sentinel", "serve", str(small), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr.strip()

    port = server.url.rpartition(":")[2]
    assert (
        refused("--port", port)
        == f"sentinel: port {port} of 127.0.0.1 is taken; give another --port, or 0 for a free one"
    )
    assert "give an --api-key" in refused("--host", "0.0.0.0", "--port", "0")
    assert "at most 32 sequences" in refused("--port", "0", "--level", "2", "--batch", "33")


def test_without_the_extra_one_sentence_names_it(small):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        f"from sentinel.cli import main\nsys.exit(main(['serve', {json.dumps(str(small))}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == 2
    assert done.stderr.strip() == "sentinel: uvicorn is missing; pip install 'sentinel-ai[serve]'"


def test_under_load_answers_are_made_at_narrower_widths_and_say_so(elastic, worded):
    with Server(
        Path(elastic), "--level", "2", "--batch", "1", "--shed", "0.5/0.5", "--shed-wait", "0.000001"
    ) as server:
        client, options = server.client(), {"model": "elastic", "prompt": "a b c", "temperature": 0}
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: client.completions.create(max_tokens=40, **options), range(3)))
        widths = [answer.choices[0].widths for answer in found]
        assert all(
            sum(counts.values()) == answer.usage.completion_tokens for counts, answer in zip(widths, found, strict=True)
        )
        assert "0.5/0.5" in {name for counts in widths for name in counts}
        *_, last = client.completions.create(max_tokens=9, stream=True, **options)
        assert sum(last.choices[0].widths.values()) == 9
        told = [server.figure(f'sentinel_tokens_by_width_total{{width="{name}"}}') for name in ("0", "0.5/0.5")]
        assert sum(told) == server.figure("sentinel_generated_tokens_total")
        assert server.figure('sentinel_width_in_use{width="0.5/0.5"}') == 1
    command = [sys.executable, "-m", "sentinel", "serve", worded, "--port", "0", "--shed", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert done.returncode == 2 and "stores no widths" in done.stderr
