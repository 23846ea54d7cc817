"""``/v1/embeddings``: the mean of the states after the final norm, at unit length, by OpenAI's client."""

from __future__ import annotations

import base64
import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import spec_of
from helpers import character_tokenizer, filled_decoder
from serving import Server, openai, save_small

from sentinel.formats.checkpoint import load_checkpoint
from sentinel.infer import batching
from sentinel.infer.batch_request import Events, Finish, Request
from sentinel.infer.batching import Batcher
from sentinel.infer.opening import make_engine
from sentinel.infer.shedding import Shedding
from sentinel.models.width import Width

TEXT = "an abc of letters"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def server(small) -> Iterator[Server]:
    with Server(small, "--level", "2", "--batch", "4", "--queue", "9", "--max-prompt", "200") as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found


def mean_state(decoder, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return decoder.final_norm(decoder.hidden_states(torch.tensor([tokens])))[0].numpy().mean(axis=0)


def test_an_embedding_is_the_mean_state_at_unit_length(small, server, client):
    tokens = server.http.post("/tokenize", json={"prompt": TEXT}).json()["tokens"]
    wanted = mean_state(load_checkpoint(small), tokens)
    found = client.embeddings.create(model="small", input=TEXT, encoding_format="float")
    (one,) = found.data
    assert np.allclose(one.embedding, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert abs(np.linalg.norm(one.embedding) - 1) < 1e-5
    assert found.usage.prompt_tokens == found.usage.total_tokens == len(tokens)
    assert (found.object, found.model, one.object, one.index) == ("list", "small", "embedding", 0)


def test_texts_and_tokens_one_or_many_and_both_encodings_are_the_same(server, client):
    texts = [f"{TEXT} {number}" for number in range(21)]  # more than wait together, and than the queue holds
    alone = [client.embeddings.create(model="small", input=text).data[0].embedding for text in texts]
    tokens = [server.http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    for given in (texts, tokens):
        found = client.embeddings.create(model="small", input=given)  # the client asks for base64 by itself
        assert [one.index for one in found.data] == list(range(21))
        assert np.allclose([one.embedding for one in found.data], alone, atol=1e-6)
        assert found.usage.prompt_tokens == sum(map(len, tokens))
    assert np.allclose(client.embeddings.create(model="small", input=tokens[3]).data[0].embedding, alone[3], atol=1e-6)
    body = {"model": "small", "input": texts[3], "encoding_format": "base64"}
    coded = server.http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(coded), "<f4"), alone[3], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dimensions": 8}, "unsupported_parameter"),
        ({"encoding_format": "int8"}, "invalid_type"),
        ({"input": ""}, "invalid_value"),
        ({"input": []}, "invalid_type"),
        ({"input": ["a", ""]}, "invalid_value"),
        ({"input": [[1], []]}, "invalid_type"),
        ({"input": [97]}, "invalid_value"),
        ({"input": ["a"] * 2049}, "invalid_value"),
        ({"input": "a" * 201}, "context_length_exceeded"),
        ({"model": "other"}, "model_not_found"),
    ],
)
def test_what_can_not_be_embedded_is_refused(change, code, server):
    found = server.http.post("/v1/embeddings", json={"model": "small", "input": "a", **change})
    assert found.status_code in (400, 404) and found.json()["error"]["code"] == code, found.text


def test_answers_go_on_beside_embeddings(server, client):
    options = {"model": "small", "prompt": "abc", "max_tokens": 60, "temperature": 0}
    alone = client.completions.create(**options).choices[0].text
    vector = client.embeddings.create(model="small", input=TEXT * 9).data[0].embedding
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(client.completions.create, **options) for _ in range(2)]
        vectors = [pool.submit(client.embeddings.create, model="small", input=TEXT * 9) for _ in range(4)]
        assert [one.result().choices[0].text for one in texts] == [alone] * 2
        assert all(np.allclose(one.result().data[0].embedding, vector, atol=1e-6) for one in vectors)
    assert server.figure("sentinel_sequences_active") == 0


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_long_text_is_read_in_pieces_and_leaves_nothing_open(level, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 7)
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine, tokens = make_engine(decoder, level), list(range(1, 40))
    with Batcher(engine, character_tokenizer()) as batcher:
        events = Events()
        batcher.submit(Request(tokens, 1, embed=True), events.tell)
        (last,) = list(events)
        assert last.finish is Finish.STOP and last.token is None and batcher.idle
        whole = engine.states(engine.begin(len(tokens)), tokens).mean(axis=0)
        assert np.abs(last.mean - whole).max() < 1e-5 and not len(batcher.caches[0])
    if level < 3:
        assert np.abs(last.mean - mean_state(decoder, tokens)).max() < 1e-4


def test_under_load_embeddings_are_those_of_the_widest_width():
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine, narrow = make_engine(decoder, 2), make_engine(decoder, 2)
    narrow.set_width(Width(tuple(1 for _ in decoder.spec.layers), tuple(8 for _ in decoder.spec.layers)))
    wanted = engine.states(engine.begin(9), list(range(1, 10))).mean(axis=0)
    with Batcher(engine, character_tokenizer(), shedding=Shedding("0", {"0.5": narrow}, wait_s=1e-9)) as batcher:
        heard = [Events() for _ in range(6)]
        for events in heard:
            batcher.submit(Request(list(range(1, 10)), 1, embed=True), events.tell)
        means = [last.mean for (last,) in map(list, heard)]
        assert all(mean is not None and np.allclose(mean, wanted, atol=1e-6) for mean in means)
        assert batcher.width == "0.5"  # there was load


def test_the_client_is_told_why(client):
    with pytest.raises(openai.BadRequestError, match="as wide as the model; leave it out"):
        client.embeddings.create(model="small", input="a", dimensions=4)
