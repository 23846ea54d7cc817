"""`SentinelForCausalLM` is a Hugging Face model to the code that uses one: arguments, caches, resizing, adapters."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, resized, some_tokens
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from sentinel.adapt.integration import integrate
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.formats.hugging_face.model import SentinelForCausalLM, to_hugging_face
from sentinel.formats.sources import load
from sentinel.infer.pack import pack
from sentinel.infer.quantised import save_quantised
from sentinel.models.decoder import Decoder
from sentinel.models.record import Record
from sentinel.models.tokenizer import TextTokenizer
from sentinel.models.width import Width

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
HEADS = {"first": [0, 1, 1, 1], "middle": [2, 0, 3, 1], "last": [1, 1, 1, 0], "all": [0, 0, 0, 0]}


def wrapped(spec) -> SentinelForCausalLM:
    return SentinelForCausalLM.from_decoder(filled_decoder(spec), Record())


def both(name: str) -> tuple:
    """The same model as Hugging Face's own and as ours."""
    decoder = filled_decoder(spec_of(name))
    return to_hugging_face(decoder), SentinelForCausalLM.from_decoder(decoder, Record())


def without_heads(which: str, positions: str = "rope") -> SentinelForCausalLM:
    spec = unequal_spec(positions)
    layers = tuple(resized(layer, 6, 3, layer.head_dim, layer.intermediate_size) for layer in spec.layers)
    spec = dataclasses.replace(spec, layers=layers)
    return wrapped(Width(tuple(HEADS[which]), Width.full(spec).neurons).of(spec))


@pytest.fixture(params=["gpt2", "llama-grouped"])
def pair(request) -> tuple:
    return both(request.param)


# --- loss ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [None, 40, torch.tensor(7)])
def test_the_loss_is_hugging_faces(pair, items):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    labels = tokens.clone()
    labels[0, :5] = -100
    options = {"labels": labels, "num_items_in_batch": items}
    assert ours(tokens, **options).loss.item() == pytest.approx(theirs(tokens, **options).loss.item(), rel=1e-5)


# --- arguments of forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(lambda n: torch.arange(n)[None] + 9, id="shifted"),
        pytest.param(lambda n: torch.stack((torch.arange(n), torch.arange(n) + 3)), id="one per row"),
        pytest.param(lambda n: torch.zeros(2, n, dtype=torch.long), id="all zero"),
        pytest.param(lambda n: torch.cat((torch.arange(5), torch.arange(n - 5)))[None], id="two texts in a row"),
    ],
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_position_ids_are_honoured(pair, ids, use_cache):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    options = {"position_ids": ids(tokens.shape[1]), "use_cache": use_cache}
    with torch.no_grad():
        assert largest_difference(ours(tokens, **options).logits, theirs(tokens, **options).logits) < 1e-5


def test_texts_packed_in_a_row_do_not_see_each_other():
    model = wrapped(unequal_spec())
    tokens = some_tokens(model.decoder.spec, batch=1)
    ids = torch.cat((torch.arange(6), torch.arange(11)))[None]
    with torch.no_grad():
        packed = model(tokens, position_ids=ids, use_cache=False).logits
        alone = torch.cat((model(tokens[:, :6]).logits, model(tokens[:, 6:]).logits), 1)
    assert largest_difference(packed, alone) < 1e-5


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([1, 2]), torch.tensor([4])])
def test_logits_to_keep_is_a_number_or_places(pair, keep):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    with torch.no_grad():
        ours, theirs = ours(tokens, logits_to_keep=keep).logits, theirs(tokens, logits_to_keep=keep).logits
    assert ours.shape == theirs.shape
    assert largest_difference(ours, theirs) < 1e-5


def test_hidden_states_are_hugging_faces(pair):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True).hidden_states
        found = ours(tokens, output_hidden_states=True).hidden_states
        assert len(found) == len(expected)
        assert all(largest_difference(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))
        ours.config.output_hidden_states = True
        assert len(ours(tokens).hidden_states) == len(expected)
    out = ours.generate(tokens, return_dict_in_generate=True, output_hidden_states=True, **GREEDY)
    assert len(out.hidden_states) == 8


def test_embeddings_stand_in_for_tokens(pair):
    _, ours = pair
    tokens = some_tokens(ours.decoder.spec, length=6)
    embeds = ours.get_input_embeddings()(tokens)
    with torch.no_grad():
        assert torch.equal(ours(inputs_embeds=embeds).logits, ours(tokens).logits)
    expected = ours.generate(tokens, **GREEDY)[:, 6:]
    assert torch.equal(ours.generate(inputs_embeds=embeds, **GREEDY), expected)


def test_a_mask_of_four_dimensions_is_the_mask(pair):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    mask[1, :, 8:, 2:5] = False
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        for form in (mask, added):
            found, expected = ours(tokens, attention_mask=form).logits, theirs(tokens, attention_mask=form).logits
            assert largest_difference(found, expected) < 1e-5


def test_outputs_are_those_that_hugging_face_has(pair):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec)
    for options in ({}, {"use_cache": False}, {"use_cache": True}, {"labels": tokens}, {"output_hidden_states": True}):
        assert list(ours(tokens, **options)) == list(theirs(tokens, **options))
        assert len(ours(tokens, return_dict=False, **options)) == len(theirs(tokens, return_dict=False, **options))
    ours.config.use_cache = False
    assert "logits" in ours(tokens) and ours(tokens).past_key_values is None
    ours.config.return_dict = False
    assert isinstance(ours(tokens), tuple)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs_embeds": torch.zeros(2, 17, 48)}, "either input_ids or inputs_embeds"),
        ({"past_key_values": ((torch.zeros(1),),)}, "must be a transformers Cache, not tuple"),
        ({"past_key_values": DynamicCache(), "cache": DynamicCache()}, "give one"),
        ({"position_ids": torch.arange(5)[None]}, r"position_ids have shape \(1, 5\)"),
        ({"position_ids": torch.arange(17)[None] + 60}, "60 to 76, but the model has positions 0 to 63"),
        ({"attention_mask": torch.ones(2, 5)}, r"attention_mask has shape \(2, 5\)"),
        ({"attention_mask": torch.ones(2, 1, 17, 17, dtype=torch.long)}, "of bool or float"),
        ({"labels": torch.zeros(2, 17, dtype=torch.long), "logits_to_keep": 3}, "leave out logits_to_keep"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(options, said):
    model = wrapped(spec_of("gpt2"))
    with pytest.raises(InputError, match=said):
        model(some_tokens(model.decoder.spec), **options)


@pytest.mark.parametrize("name", ["atention_mask", "num_item_in_batch", "is_causal", "token_type_ids"])
def test_unknown_keywords_are_refused(name):
    model = wrapped(spec_of("gpt2"))
    with pytest.raises(TypeError, match=name):
        model(some_tokens(model.decoder.spec), **{name: None})
    with pytest.raises((TypeError, ValueError), match=name):
        model.generate(some_tokens(model.decoder.spec), **{name: 1}, **GREEDY)
    assert all(p.kind != p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())


# --- caches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("which", HEADS)
@pytest.mark.parametrize("beams", [1, 3])
def test_layers_without_heads_generate_alike_with_every_cache(which, positions, beams):
    model = without_heads(which, positions)
    tokens = some_tokens(model.decoder.spec, length=6)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "num_beams": beams, **GREEDY}
    expected = model.generate(tokens, use_cache=False, **options)
    assert torch.equal(model.generate(tokens, **options), expected)
    assert torch.equal(model.generate(tokens, cache_implementation="static", **options), expected)
    alone = model.generate(tokens[:1, 3:], num_beams=beams, **GREEDY)
    assert torch.equal(alone[:, 3:], expected[:1, 6:])


def test_caches_fill_step_by_step():
    model = wrapped(unequal_spec())
    tokens = some_tokens(model.decoder.spec)
    with torch.no_grad():
        expected = model(tokens).logits
        for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=32)):
            parts = [model(tokens[:, a:b], past_key_values=cache).logits for a, b in ((0, 9), (9, 10), (10, 17))]
            assert largest_difference(torch.cat(parts, 1), expected) < 1e-5
            assert int(cache.get_seq_length()) == 17


def test_beams_without_a_cache_are_hugging_faces(pair):
    theirs, ours = pair
    tokens = some_tokens(ours.decoder.spec, length=5)
    options = {"attention_mask": torch.ones_like(tokens), "num_beams": 3, "use_cache": False, **GREEDY}
    assert torch.equal(ours.generate(tokens, **options), theirs.generate(tokens, eos_token_id=None, **options))


# --- config and vocabulary ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2"])
@pytest.mark.parametrize("rows", [120, 80])
def test_a_resized_vocabulary_is_saved_and_loads(name, rows, tmp_path):
    model = wrapped(spec_of(name))
    tokens = some_tokens(model.decoder.spec) % 80
    before = model(tokens).logits
    model.resize_token_embeddings(rows)
    assert model.config.vocab_size == model.decoder.spec.vocab_size == model.config.model_spec().vocab_size == rows
    assert (model.decoder.lm_head is None) == model.decoder.spec.tied_head
    after = model(tokens, labels=tokens).logits
    assert after.shape[-1] == rows
    assert largest_difference(after[..., :80], before[..., :80]) < 1e-5
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(SentinelForCausalLM.from_pretrained(tmp_path / "a")(tokens).logits, after)
        assert torch.equal(load_checkpoint(tmp_path / "a")(tokens), after)


def test_a_model_with_a_baseline_is_not_resized():
    unpruned = filled_decoder(spec_of("gpt2"))
    model = SentinelForCausalLM.from_decoder(integrate(unpruned, "no-unet", baseline=unpruned), Record())
    with pytest.raises(InputError, match="same vocabulary"):
        model.resize_token_embeddings(120)
    with pytest.raises(InputError, match="embeds tokens by itself"):
        model(inputs_embeds=torch.zeros(1, 3, 48))


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_position_embeddings", 32), ("vocab_size", 120), ("hidden_size", 64), ("num_hidden_layers", 2),
     ("tie_word_embeddings", True)],
)  # fmt: skip
def test_a_config_that_contradicts_its_spec_is_refused(name, value, tmp_path):
    spec = spec_of("llama-grouped")
    with pytest.raises(InputError, match=f"{name} is {value}"):
        SentinelConfig(spec, **{name: value})
    wrapped(spec).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{name} is {value}"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **{name: value})


def test_a_config_without_a_spec_is_refused():
    with pytest.raises(InputError, match="no spec"):
        SentinelForCausalLM(SentinelConfig())


def test_a_quantised_checkpoint_is_refused(worded, tmp_path):
    loaded = load(worded)
    save_quantised(pack(loaded.decoder, "int8"), {}, tmp_path / "packed", loaded.tokenizer, loaded.record)
    assert AutoConfig.from_pretrained(tmp_path / "packed").precision == "int8"
    with pytest.raises(InputError, match=r"quantised \(int8\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    with pytest.raises(InputError, match=r"quantised \(int8\)"):
        SentinelForCausalLM.from_pretrained(tmp_path / "packed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_generate(dtype, worded):
    model = AutoModelForCausalLM.from_pretrained(worded, dtype=dtype)
    tokens = some_tokens(model.decoder.spec, length=5)
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    assert model(tokens, labels=tokens).logits.dtype == dtype
    assert model.generate(tokens, attention_mask=mask, **GREEDY).shape == (2, 13)


def test_a_pipeline_continues_text(worded):
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(worded)
    model = AutoModelForCausalLM.from_pretrained(worded)
    writes = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (found,) = writes("a b c", max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found["generated_text"].startswith("a b c")


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ 'p ' if m.role == 'user' else 'o ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}o {% endif %}"
)


@pytest.mark.parametrize("given", ["folder", "model"])
def test_a_pipeline_answers_chats(given, worded, tmp_path):
    from transformers import AutoTokenizer, pipeline

    loaded = load(worded)
    loaded.tokenizer = TextTokenizer(loaded.tokenizer.fast, (0,), settings={"chat_template": CHAT_TEMPLATE})
    save_checkpoint(loaded.decoder, tmp_path / "chat", loaded.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat", padding_side="left", pad_token="<end>")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "chat")
    answers = pipeline(
        "text-generation", model=str(tmp_path / "chat") if given == "folder" else model, tokenizer=tokenizer
    )
    asked = [{"role": "user", "content": "b c d"}]
    longer = [*asked, {"role": "assistant", "content": "e"}, {"role": "user", "content": "f g"}]
    expected = []
    for chat in (asked, longer):
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        (ids,) = model.generate(**prompt, **GREEDY)
        answer = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer
        expected.append([*chat, {"role": "assistant", "content": answer}])
    assert answers(asked, **GREEDY)[0]["generated_text"] == expected[0]
    batch = answers([asked, longer], batch_size=2, **GREEDY)
    assert [found["generated_text"] for (found,) in batch] == expected


def test_a_projection_called_as_a_module_is_the_fast_one(monkeypatch):
    seen = []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *a: seen.append(1) or real(*a))
    decoder: Decoder = filled_decoder(dataclasses.replace(spec_of("llama-grouped"), n_embd=512))
    with torch.no_grad():
        decoder(torch.tensor([[1]]))
    assert len(seen) == 2 * 3  # the projections of 128 rows or more that a single row goes through
