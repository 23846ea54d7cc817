"""Every family is the model that Hugging Face has, on tiny random configs of each of its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_configs import CONFIGS, hugging_face, spec_named
from helpers import filled_decoder, largest_difference, some_tokens
from native_oracle import dequantised

from sentinel.adapt.pruning.compact import expand_kv
from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.recovery.recover import recover
from sentinel.adapt.recovery.settings import RecoverySettings
from sentinel.adapt.text.corpora import Windows
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.random_weights import random_decoder
from sentinel.infer.native import NativeEngine
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack
from sentinel.models.families import FAMILIES, family_of
from sentinel.models.families.weights import read_weights, write_weights
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.rows import ALL
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width


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
    assert all(torch.allclose(back[key][ALL], tensor, atol=1e-6) for key, tensor in state.items())
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
    assert spec == ModelSpec.from_json(spec.to_json())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_native_engine_runs_every_family(name, precision):
    """Level 2, and level 3 against the decoder whose weights are those that the packed ones stand for."""
    spec = spec_named(name)
    decoder, tokens = filled_decoder(spec), some_tokens(spec, batch=1, length=48)[0].tolist()
    weights = pack(decoder, precision)
    engine = NativeEngine(weights, kv="fp32", threads=1)
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
    found = [engine.prefill([tokens[:40]], 8), *(engine.decode_one_token([token]) for token in tokens[40:])]
    tolerance = 1e-4 if precision == "fp32" else 0.2  # inputs of products are rounded to bytes
    assert largest_difference(torch.from_numpy(np.concatenate(found)), expected[39:]) < tolerance


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_is_pruned_compensated_recovered_and_stored(name, tmp_path):
    dense = random_decoder(spec_named(name), 0)
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    dense = expand_kv(dense)
    windows = some_tokens(dense.spec, batch=12, length=24)
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
    with torch.no_grad():
        logits = dense(windows[:4, :-1]).flatten(0, 1)
    own = float(torch.nn.functional.cross_entropy(logits, windows[:4, 1:].flatten()))
    assert found.teacher_nll == pytest.approx(own, rel=2e-2)
    assert len(found.losses) == 2 and found.best.mean_kl <= found.held_out[0].mean_kl
    assert all(np.isfinite(gram).all() for grams in input_grams(dense, windows) for gram in grams.values())
