"""Text that keeps to a form: by every way to generate, alone and in a batch."""

from __future__ import annotations

import json
import re

import pytest
from batches import ask, heard
from conftest import spec_of
from helpers import byte_tokenizer, character_tokenizer, filled_decoder, with_layers

import sentinel
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.infer.batch_request import Finish, Request
from sentinel.infer.batching import Batcher
from sentinel.infer.generate import generate_tokens, stream_text
from sentinel.infer.grammar import Form, Grammars
from sentinel.infer.lookup import PromptLookup
from sentinel.infer.opening import make_engine
from sentinel.infer.sampling import SamplingSettings
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec
from sentinel.models.tokenizer import TextTokenizer

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "c"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
DATE = r"[12][0-9]{3}-(0[1-9]|1[0-2])"
FORMS = [Form.json_schema(SCHEMA), Form.regex(DATE)]
DRAWN = SamplingSettings(temperature=1.0, seed=3, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def decoder():
    spec = with_layers(spec_of("llama-grouped"))
    return filled_decoder(ModelSpec(**{**vars(spec), "vocab_size": 300, "max_seq_len": 256}))


def keeps(form: Form, text: str) -> bool:
    if form.is_regex:
        return re.fullmatch(form.text, text) is not None
    found = json.loads(text)
    return set(found) == {"name", "size"} and found["name"] in ("ab", "c") and 1 <= found["size"] <= 9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [SamplingSettings(), DRAWN])
def test_every_answer_of_a_batch_keeps_to_its_form_and_is_the_one_alone(form, settings, decoder):
    engine, tokenizer = make_engine(decoder, 2), byte_tokenizer()
    grammars, prompt = Grammars(tokenizer, 300), tokenizer.encode("hello")
    alone = "".join(stream_text(engine, tokenizer, prompt, 120, settings, form=form))
    guessed = "".join(stream_text(engine, tokenizer, prompt, 120, settings, proposer=PromptLookup(), form=form))
    with Batcher(engine, tokenizer) as batcher:
        free = ask(batcher, Request(prompt, 60, settings))
        kept = [
            ask(batcher, Request(prompt, 120, settings, tokenizer.eos_ids, constraint=grammars.begin(each)))
            for each in (form, *FORMS)
        ]
        texts = [heard(events) for events in kept]
        assert len(heard(free)[0]) == 60
    assert texts[0][1] == alone == guessed and keeps(form, alone)
    assert all(
        keeps(each, text) and last.finish is Finish.STOP for each, (_, text, last) in zip(FORMS, texts[1:], strict=True)
    )


def test_a_batch_of_prompts_ends_each_at_its_own_end(decoder):
    tokenizer = byte_tokenizer()
    constraint = Grammars(tokenizer, 300).begin(Form.regex("[ab]{1,6}"))
    steps = list(
        generate_tokens(
            make_engine(decoder, 1), [[5], [9, 9], [7]], 20, DRAWN, tokenizer.eos_ids, constraint=constraint
        )
    )
    for row in zip(*steps, strict=True):
        text = tokenizer.decode([token for token in row if token is not None])
        assert re.fullmatch("[ab]{1,6}", text), text


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form.json_schema({"type": "nope"}), "JSON schema can't be kept to.*nope"),
        (Form.json_schema({"$ref": "file:///etc/passwd"}), "JSON schema can't be kept to"),
        (Form.regex("a("), "regular expression can't be kept to"),
        (Form("5"), "the JSON schema is none"),
    ],
)
def test_a_form_that_is_none_is_refused(form, said):
    with pytest.raises(InputError, match=said):
        Grammars(byte_tokenizer(), 300).begin(form)


def test_a_tokenizer_without_bytes_or_end_is_refused():
    with pytest.raises(InputError, match="no token that ends a text"):
        Grammars(character_tokenizer(), 97).begin(Form.json_object())
    other = TextTokenizer(character_tokenizer().fast, (0,))
    with pytest.raises(InputError, match="can't be kept to a form"):
        Grammars(other, 97).begin(Form.json_object())


def test_the_command_and_the_python_call_take_a_schema(decoder, tmp_path, capsys):
    folder, schema = tmp_path / "model", tmp_path / "schema.json"
    save_checkpoint(decoder, folder, byte_tokenizer(), Record())
    schema.write_text(json.dumps(SCHEMA))
    assert main(["generate", str(folder), "hello", "--json-schema", str(schema)]) == 0
    told = capsys.readouterr().out
    assert keeps(FORMS[0], told)
    assert sentinel.load(folder).generate("hello", json_schema=SCHEMA).strip() == told.strip()
    schema.write_text("[1]")
    assert main(["generate", str(folder), "hello", "--json-schema", str(schema)]) == 2
    assert "must be a JSON object" in capsys.readouterr().err
