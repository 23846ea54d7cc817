"""Every family is the model that Hugging Face has, on tiny random configs of each of its features."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers import filled_decoder, largest_difference, some_tokens
from native_oracle import dequantised
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.text.corpora import Windows
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.sources import random_decoder
from sentinel.infer.native import NativeEngine
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack
from sentinel.models.families import FAMILIES, family_of
from sentinel.models.families.weights import read_weights, write_weights
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NO_GROUPS = {name: value for name, value in TINY.items() if name != "num_key_value_heads"}
OPT = {name: value for name, value in NO_GROUPS.items() if name != "intermediate_size"} | {"ffn_dim": 80}
OLD: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 8.0],
    "original_max_position_embeddings": 32,
}
GEMMA: dict[str, Any] = {**TINY, "head_dim": 8, "query_pre_attn_scalar": 24}

# By name: the family and the fields of a config.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-yarn": ("llama", {**TINY, "rope_parameters": YARN}),
    "llama-yarn-mscale": (
        "llama",
        {**TINY, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False, "beta_fast": 16}},
    ),
    "llama-dynamic": ("llama", {**TINY, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-longrope": ("llama", {**TINY, "rope_parameters": LONG}),
    "mistral": ("mistral", {**TINY, "sliding_window": None, "head_dim": 16}),
    "mistral-window": ("mistral", {**TINY, "sliding_window": 5}),
    "qwen2": ("qwen2", {**TINY, "tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {**TINY, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**TINY, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias-window": (
        "qwen3",
        {**TINY, "head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "smollm3": ("smollm3", {**TINY, "pad_token_id": 0}),
    "smollm3-window": (
        "smollm3",
        {**TINY, "pad_token_id": 0, "no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 6}
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "phi3": ("phi3", {**TINY, "pad_token_id": 0, "sliding_window": 7}),
    "phi3-longrope": (
        "phi3",
        {**TINY, "pad_token_id": 0, "original_max_position_embeddings": 32, "rope_parameters": LONG},
    ),
    "phi3-partial": (
        "phi3",
        {**TINY, "pad_token_id": 0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "granite": (
        "granite",
        {**TINY, "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22}
        | {"logits_scaling": 8.0, "tie_word_embeddings": True},
    ),
    "olmo2": ("olmo2", TINY),
    "olmo2-bias": ("olmo2", {**TINY, "attention_bias": True}),
    "gemma": ("gemma", {**TINY, "head_dim": 16}),
    "gemma2": ("gemma2", {**GEMMA, "sliding_window": 5}),
    "gemma2-no-caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window": 5, "num_hidden_layers": 7}),
    "gemma3-scaled": (
        "gemma3_text",
        {**GEMMA, "sliding_window": 5, "final_logit_softcapping": 20.0}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "opt": ("opt", {**OPT, "word_embed_proj_dim": 48}),
    "opt-no-bias": ("opt", {**OPT, "word_embed_proj_dim": 48, "enable_bias": False}),
    "gpt_neox": ("gpt_neox", NO_GROUPS),
    "gpt_neox-sequential": ("gpt_neox", {**NO_GROUPS, "use_parallel_residual": False, "attention_bias": False}),
    "gptj": ("gptj", {**OLD, "rotary_dim": 6}),
    "phi": ("phi", TINY),
    "stablelm": ("stablelm", {**TINY, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**TINY, "use_parallel_residual": True}),
    "gpt_bigcode": ("gpt_bigcode", OLD),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {**OLD, "multi_query": False}),
    "starcoder2": ("starcoder2", {**TINY, "sliding_window": 6}),
}


def spec_named(name: str) -> ModelSpec:
    family, fields = CONFIGS[name]
    return family_of(family).spec_from_config({"model_type": family, **fields})


def hugging_face(name: str) -> Any:
    """Hugging Face's own model of that config, in which every parameter matters."""
    family, fields = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2)
    return model


def test_every_family_has_a_config_here():
    assert {family for family, _ in CONFIGS.values()} == set(FAMILIES) - {"gpt2"}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face(name, tmp_path):
    theirs = hugging_face(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_checkpoint(tmp_path / "theirs")
    save_checkpoint(ours, tmp_path / "ours")
    with torch.no_grad():
        for length in (17, 40):
            tokens = some_tokens(ours.spec, length=length)
            expected = theirs(tokens).logits
            assert largest_difference(ours(tokens), expected) < 1e-5
            assert largest_difference(ReferenceDecoder(ours)(tokens), expected) < 1e-5
        assert torch.equal(load_checkpoint(tmp_path / "ours")(tokens), ours(tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_of_weights_is_invertible(name):
    spec = spec_named(name)
    family, ours = family_of(spec.family), filled_decoder(spec)
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.gate.fill_(1.0)
    rules, state = family.rules(spec), ours.state_dict()
    back = read_weights(rules, spec, write_weights(rules, spec, state))
    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], tensor, atol=1e-6) for key, tensor in state.items())
    assert family.spec_from_config(family.config_from_spec(spec)) == spec


@pytest.mark.parametrize("name", CONFIGS)
def test_pruned_equals_masked_cached_and_padded(name):
    spec = spec_named(name)
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    reference, full = ReferenceDecoder(decoder), Width.full(spec)
    width = Width(tuple(g - g // 2 for g in full.groups), tuple(n // 3 for n in full.neurons))
    with torch.no_grad():
        for model in (decoder, reference):
            model.use(width)
        pruned = decoder(tokens)
        assert largest_difference(reference(tokens), pruned) < 1e-5
        for model in (decoder, reference):
            cache = KVCache(model.cache_spec, tokens.shape[0], tokens.shape[1])
            steps = [model(tokens[:, a:b], cache) for a, b in ((0, 9), (9, 10), (10, 17))]
            assert largest_difference(torch.cat(steps, 1), pruned) < 1e-5
            padded = torch.cat((torch.zeros(2, 4, dtype=torch.long), tokens), 1)
            mask = torch.ones_like(padded)
            mask[:, :4] = 0
            assert largest_difference(model(padded, None, mask)[:, 4:], pruned) < 1e-5
    assert dataclasses.replace(spec) == ModelSpec.from_json(spec.to_json())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_native_engine_runs_every_family(name, precision):
    """Level 2, and level 3 against the decoder whose weights are those that the packed ones stand for."""
    spec = spec_named(name)
    decoder, tokens = filled_decoder(spec), some_tokens(spec, batch=1, length=48)[0].tolist()
    weights = pack(decoder, precision)
    engine = NativeEngine(weights, half_kv=False, threads=1)
    rounded = filled_decoder(spec)
    with torch.no_grad():
        for block, source in zip(rounded.blocks, decoder.blocks, strict=True):  # gates are rounded with the weights
            block.attn.out_proj.weight *= source.attn.gate.repeat_interleave(source.attn.layer.head_dim)
            block.attn.gate.fill_(1.0)
        for tensor, weight in rounded.state_dict().items():
            stored = "lm_head" if spec.tied_head and tensor == "embed.weight" else tensor.removesuffix(".weight")
            if f"{stored}.packed" in weights.parts and precision != "fp32":
                scale = spec.block.residual_scale if tensor.endswith(("out_proj.weight", "down_proj.weight")) else 1.0
                kind = weights.parts[f"{stored}.packed"].kind
                weight.copy_(torch.from_numpy(dequantised(weight.numpy() * np.float32(scale), kind)) / scale)
        expected = rounded(torch.tensor([tokens]))[0]
    found = [engine.prefill([tokens[:40]]), *(engine.decode([token]) for token in tokens[40:])]
    tolerance = 1e-4 if precision == "fp32" else 2e-3
    assert largest_difference(torch.from_numpy(np.concatenate(found)), expected[39:]) < tolerance


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_pruned_compensated_recovered_and_stored(name, tmp_path):
    dense = random_decoder(spec_named(name), 0)
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    dense = expand_kv(dense)
    windows, spec = some_tokens(dense.spec, batch=12, length=24), dense.spec
    pruner = Pruner(dense, PruningSettings(seed=1), Windows(windows, ("a",)))
    order = pruner.order(0.5, 0.5)
    plans = [order.plan(0.25), order.plan(0.5, 0.25)]
    solved, cut = pruner.apply(plans), pruner.with_compensation(False).apply(plans)
    with torch.no_grad():
        errors = [[float((m(windows) - dense(windows)).square().mean()) for m in made] for made in (solved, cut)]
    assert all(ours < theirs for ours, theirs in zip(*errors, strict=True))
    elastic = make_elastic(dense, order, plans, solved)
    save_checkpoint(elastic, tmp_path / "elastic")
    loaded = load_checkpoint(tmp_path / "elastic")
    with torch.no_grad():
        for plan, model in zip(plans, solved, strict=True):
            loaded.set_width(plan.heads, plan.neurons)
            assert largest_difference(loaded(windows), model(windows)) < 1e-5
            native = make_engine(loaded, 2).prefill([windows[0, :20].tolist()], 1)
            assert largest_difference(torch.from_numpy(native), model(windows[:1, :20])[0, -1:]) < 1e-4
    settings = RecoverySettings(steps=2, batch=2, evaluations=1, learning_rate=1e-3, bf16=False)
    found = recover(solved[1], dense, windows, windows[:4], settings)
    own = float(torch.nn.functional.cross_entropy(dense(windows[:4, :-1]).flatten(0, 1), windows[:4, 1:].flatten()))
    assert found.teacher_nll == pytest.approx(own, rel=2e-2)
    assert len(found.losses) == 2 and found.best.mean_kl <= found.held_out[0].mean_kl
    assert all(np.isfinite(gram).all() for grams in input_grams(dense, windows) for gram in grams.values())
    assert spec == dense.spec
