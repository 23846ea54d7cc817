"""Trainer, adapters, offloading, compiling and export take `SentinelForCausalLM` as any Hugging Face model."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, letter_tokenizer, some_tokens
from transformers import AutoModelForCausalLM, StaticCache, Trainer, TrainingArguments

from sentinel.errors import InputError
from sentinel.formats.hugging_face.model import SentinelForCausalLM, SentinelModel
from sentinel.models.families import family_of
from sentinel.models.record import Record

MISTRAL = {
    "model_type": "mistral", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 5,
}  # fmt: skip
SPECS = {
    "llama": spec_of("llama-grouped"),
    "gpt2": spec_of("gpt2"),
    "window": family_of("mistral").spec_from_config(MISTRAL),
    "unequal": dataclasses.replace(unequal_spec(), tied_head=False),
}
EVERY = pytest.mark.parametrize("name", SPECS)


def model_of(name: str) -> SentinelForCausalLM:
    return SentinelForCausalLM.from_decoder(filled_decoder(SPECS[name]), Record())


# --- training -----------------------------------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    rows = some_tokens(SPECS["llama"], batch=16, length=12)
    data = [{"input_ids": row, "labels": row} for row in rows]
    found = []
    for batch, steps in ((16, 1), (4, 4)):
        settings = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model_of("llama"), settings, train_dataset=data)  # pyright: ignore
        trainer.train()
        found.append(next((log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@EVERY
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_change_no_gradient(name, reentrant):
    tokens = some_tokens(SPECS[name])
    found = []
    for checkpoints in (False, True):
        model = model_of(name).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(tokens, labels=tokens).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])


@EVERY
def test_lora_trains_and_merges(name):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model, tokens = model_of(name), some_tokens(SPECS[name])
    plain = model(tokens).logits.detach()
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert torch.equal(lora(tokens).logits, plain)
    optimiser = torch.optim.Adam((p for p in lora.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = lora(tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    learnt = {n.split(".")[-4] for n, p in lora.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    gate = {"gate_proj"} if SPECS[name].layers[0].mlp.gated else set()
    assert learnt == {"qkv_proj", "out_proj", "up_proj", "down_proj"} | gate
    adapted = lora(tokens).logits.detach()
    assert largest_difference(adapted, plain) > 1e-3
    assert largest_difference(lora.merge_and_unload()(tokens).logits, adapted) < 1e-5


TEXTS = {
    "text": {"text": ["a b c d e f g h"] * 8},
    "completions": {"prompt": ["a b c d"] * 8, "completion": [" e f g h"] * 8},
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS)
def test_trl_fine_tunes(data, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizer = letter_tokenizer().to_hugging_face()
    tokenizer.pad_token = tokenizer.eos_token
    spec = dataclasses.replace(SPECS["llama"], vocab_size=len(tokenizer))
    model = SentinelForCausalLM.from_decoder(filled_decoder(spec), Record())
    settings = trl.SFTConfig(
        str(tmp_path), max_steps=5, per_device_train_batch_size=4, learning_rate=1e-2, max_length=16, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    rows = datasets.Dataset.from_dict(data)
    trainer = trl.SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] / 2


# --- offloading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "window", "unequal"])
def test_offloaded_models_compute_the_same(name, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    tokens = some_tokens(SPECS[name])
    expected = model_of(name)(tokens).logits
    offloaded = accelerate.cpu_offload(model_of(name), execution_device=torch.device("cpu"))
    assert torch.equal(offloaded(tokens).logits, expected)
    model_of(name).save_pretrained(tmp_path / "model")
    layers = {f"decoder.layers.{i}": "disk" if i else "cpu" for i in range(SPECS[name].n_layer)}
    places = {"decoder.embed": "cpu", "decoder.final_norm": "cpu", "decoder.lm_head": "disk", **layers}
    on_disk = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "disk")
    )
    assert on_disk.decoder.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(on_disk(tokens).logits, expected)


def test_an_offloaded_embedding_that_is_the_lm_head_is_refused():
    accelerate = pytest.importorskip("accelerate")
    tied = accelerate.cpu_offload(model_of("gpt2"), execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match="tied"):
        tied(some_tokens(SPECS["gpt2"]))


# --- graphs -------------------------------------------------------------------------------------------------------------


def masked(name: str, length: int) -> dict[str, torch.Tensor]:
    tokens = some_tokens(SPECS[name], length=length)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the logits are the same but for padding."""
    return largest_difference(found[0, 3:], expected[0, 3:]) < 1e-5 and largest_difference(found[1], expected[1]) < 1e-5


@EVERY
def test_one_graph_serves_every_length(name):
    torch._dynamo.reset()
    model = model_of(name)
    graph = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for length in (9, 12, 17):
            inputs = masked(name, length)
            assert agree(graph(**inputs).logits, model(**inputs).logits)
            assert agree(graph(inputs["input_ids"]).logits, model(inputs["input_ids"]).logits)


@EVERY
def test_one_graph_decodes_with_a_static_cache(name):
    torch._dynamo.reset()
    model, tokens = model_of(name), some_tokens(SPECS[name], length=12)
    graph = torch.compile(model, fullgraph=True, backend="eager")
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        expected = model(tokens).logits
        model(tokens[:, :8], past_key_values=cache)
        for step in range(8, 12):
            found = graph(tokens[:, step : step + 1], past_key_values=cache).logits
            assert largest_difference(found[:, 0], expected[:, step]) < 1e-5


@EVERY
@pytest.mark.parametrize("kind", [SentinelForCausalLM, SentinelModel])
def test_an_export_holds_for_other_masks_and_lengths(name, kind):
    model = model_of(name)
    model = model if kind is SentinelForCausalLM else model.base_model
    length = torch.export.Dim("length", min=2, max=60)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    graph = torch.export.export(model, (), kwargs=masked(name, 9), dynamic_shapes=shapes).module()
    with torch.no_grad():
        for length in (9, 12, 17):
            inputs = masked(name, length)
            assert agree(graph(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("name", ["llama", "window"])
def test_an_onnx_graph_holds_for_other_masks_and_lengths(name):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = model_of(name).eval()
    model.config.use_cache = False
    length = torch.export.Dim("length", min=2, max=60)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    made = torch.onnx.export(model, (), kwargs=masked(name, 9), dynamic_shapes=shapes, dynamo=True, verbose=False)
    file = io.BytesIO()
    assert made is not None
    made.save(file)
    session = runtime.InferenceSession(file.getvalue())
    for length in (9, 17):
        inputs = masked(name, length)
        (found,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        with torch.no_grad():
            assert agree(torch.from_numpy(found), model(**inputs).logits)
