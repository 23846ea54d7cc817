"""The decoder is the model that it was loaded from."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS, spec_of, unequal_spec
from helpers import filled_decoder, largest_difference, some_tokens
from transformers import AutoConfig, AutoModelForCausalLM

from sentinel.formats.checkpoint import load_checkpoint
from sentinel.formats.hugging_face.model import to_hugging_face
from sentinel.models.families import family_of
from sentinel.models.families.weights import read_weights, write_weights
from sentinel.models.kv_cache import KVCache
from sentinel.models.reference import ReferenceDecoder
from sentinel.models.rows import held
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

SPECS = [
    *(pytest.param(spec_of(n), id=n) for n in CONFIGS),
    pytest.param(unequal_spec(), id="unequal-rope"),
    pytest.param(unequal_spec("learned"), id="unequal-learned"),
]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face(name, tmp_path):
    torch.manual_seed(0)
    fields = {k: v for k, v in CONFIGS[name].items() if not (k == "rope_scaling" and v is None)}
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.1, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    tokens = some_tokens(ours.spec)
    with torch.no_grad():
        assert largest_difference(ours(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_weight_table_is_invertible(name):
    spec = spec_of(name)
    family, ours = family_of(spec.family), filled_decoder(spec)
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.gate.fill_(1.0)
    rules = family.rules(spec)
    back = held(read_weights(rules, spec, dict(write_weights(rules, spec, ours.state_dict()))))
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in ours.state_dict().items())
    assert family.spec_from_config(family.config_from_spec(spec)) == spec


def test_gates_are_folded_for_hugging_face():
    decoder = filled_decoder(spec_of("gpt2"))
    tokens = some_tokens(decoder.spec)
    with torch.no_grad():
        assert largest_difference(to_hugging_face(decoder)(tokens).logits, decoder(tokens)) < 1e-5


@pytest.mark.parametrize("spec", SPECS)
def test_reference_equals_fused(spec: ModelSpec):
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    with torch.no_grad():
        assert largest_difference(ReferenceDecoder(decoder)(tokens), decoder(tokens)) < 1e-5


@pytest.mark.parametrize("spec", SPECS)
def test_masked_heads_and_neurons_of_the_reference_equal_the_prefix_of_the_decoder(spec: ModelSpec):
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    reference = ReferenceDecoder(decoder)
    whole = decoder(tokens)
    full = Width.full(spec)
    some = Width(tuple(n // 2 for n in full.groups), tuple(n // 3 for n in full.neurons))
    for model in (decoder, reference):
        model.use(some)
    with torch.no_grad():
        pruned = decoder(tokens)
        assert largest_difference(reference(tokens), pruned) < 1e-5
        assert largest_difference(pruned, whole) > 1e-2
        for model in (decoder, reference):
            model.use(full)
        assert torch.equal(decoder(tokens), whole)
        assert largest_difference(reference(tokens), whole) < 1e-5


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("reference", [False, True])
def test_cached_equals_uncached(spec: ModelSpec, reference: bool):
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    model = ReferenceDecoder(decoder) if reference else decoder
    cache = KVCache(model.cache_spec, tokens.shape[0], tokens.shape[1])
    with torch.no_grad():
        steps = [model(tokens[:, a:b], cache) for a, b in ((0, 5), (5, 9), (9, 10), (10, 17))]
        assert largest_difference(torch.cat(steps, 1), model(tokens)) < 1e-5


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("reference", [False, True])
def test_left_padding_changes_nothing(spec: ModelSpec, reference: bool):
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    model = ReferenceDecoder(decoder) if reference else decoder
    padded = torch.cat((torch.zeros(2, 4, dtype=torch.long), tokens), 1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    with torch.no_grad():
        assert largest_difference(model(padded, None, mask)[:, 4:], model(tokens)) < 1e-5


def test_single_rows_and_gradients_agree():
    """The one-row product used outside of autograd is the ordinary one."""
    spec = spec_of("gpt2-inner")
    decoder, tokens = filled_decoder(spec), some_tokens(spec, batch=1, length=1)
    with torch.inference_mode():
        fast = decoder(tokens)
    assert largest_difference(fast, decoder(tokens).detach()) < 1e-5


def test_every_parameter_gets_a_gradient():
    spec = unequal_spec()
    decoder, tokens = filled_decoder(spec), some_tokens(spec)
    decoder(tokens).logsumexp(-1).sum().backward()
    for name, parameter in decoder.named_parameters():
        # The norms before a missing half are read by nobody.
        idle = name in ("layers.1.attn_norm.weight", "layers.2.mlp_norm.weight")
        assert idle or parameter.numel() == 0 or parameter.grad.abs().sum() > 0, name


@pytest.mark.real_model
def test_smollm2_equals_hugging_face(smollm2):
    tokens = some_tokens(smollm2.spec, batch=1, length=64)
    theirs = to_hugging_face(smollm2.decoder)
    with torch.no_grad():
        assert largest_difference(smollm2.decoder(tokens), theirs(tokens).logits) < 1e-5
