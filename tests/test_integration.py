"""U-Net skips and baseline integration: exact identity at first, trainable, cached, saved, refused where they don't fit."""

from __future__ import annotations

import dataclasses
import functools

import native_oracle as oracle
import numpy as np
import pytest
import torch
from conftest import spec_of, unequal_spec
from helpers import LETTERS, filled_decoder, largest_difference, letter_tokenizer, some_tokens

from sentinel.adapt.integration import CONFIGURATIONS, baseline_spec, fresh_fusions, integrate, plain
from sentinel.adapt.pruning.compact import compact, expand_kv, in_nested_order, select
from sentinel.adapt.pruning.criteria import criterion_named
from sentinel.adapt.pruning.gram_matrices import input_grams
from sentinel.adapt.pruning.prune import Pruner, PruningSettings, make_elastic
from sentinel.adapt.pruning.subject import Subject
from sentinel.cli import main
from sentinel.errors import InputError
from sentinel.formats.checkpoint import load_checkpoint, save_checkpoint
from sentinel.formats.hugging_face.model import SentinelForCausalLM
from sentinel.formats.shapes import KNOWN_SHAPES
from sentinel.infer.engine import Engine
from sentinel.infer.generate import generate_tokens
from sentinel.infer.native import NativeEngine, NativeWeights
from sentinel.infer.opening import make_engine
from sentinel.infer.pack import pack
from sentinel.models.decoder import Decoder
from sentinel.models.families import family_of
from sentinel.models.record import Record
from sentinel.models.spec import IntegrationSpec, ModelSpec
from sentinel.models.tensors import tensors_of
from sentinel.models.width import Width

FEATURES = ("all", "no-baseline", "no-unet")
SPECS = {name: spec_of(name) for name in ("gpt2", "llama-grouped")} | {
    "unequal-rope": unequal_spec("rope"),
    "unequal-learned": unequal_spec("learned"),
}


def half_of_the_heads(decoder: Decoder) -> Decoder:
    """The first half of each layer's head groups and all neurons."""
    whole = Width.full(decoder.spec)
    return select(decoder, Width(tuple((count + 1) // 2 for count in whole.groups), whole.neurons).kept)


def integrated(spec: ModelSpec, configuration: str = "all", rank: int | None = 4) -> Decoder:
    """A pruned model that borrows from its unpruned self, with fusions that do something."""
    unpruned = filled_decoder(spec)
    made = integrate(half_of_the_heads(unpruned), configuration, rank=rank, baseline=unpruned)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        assert made.integration is not None
        for parameter in made.integration.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("configuration", FEATURES)
@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_a_fresh_integration_is_the_exact_identity(name, configuration, rank):
    unpruned, tokens = filled_decoder(SPECS[name]), some_tokens(SPECS[name])
    assert torch.equal(integrate(unpruned, configuration, rank=rank)(tokens), unpruned(tokens))
    pruned = half_of_the_heads(unpruned)
    made = integrate(pruned, configuration, rank=rank, baseline=unpruned)
    assert torch.equal(made(tokens), pruned(tokens))
    assert torch.equal(plain(made)(tokens), pruned(tokens))
    changed = integrated(SPECS[name], configuration, rank)
    assert largest_difference(changed(tokens), pruned(tokens)) > 1e-3


@pytest.mark.parametrize("configuration", ["original", "minimal"])
def test_configurations_without_features_are_the_plain_model(configuration):
    decoder = filled_decoder(SPECS["gpt2"])
    assert integrate(decoder, configuration) is decoder
    assert integrate(integrated(SPECS["gpt2"]), configuration).spec.integration is None
    assert CONFIGURATIONS[configuration].head_by_head == (configuration == "original")


def test_skips_and_baseline_stand_where_the_design_says():
    """Layer i feeds layer n-1-i by its output, and the unpruned model the last half by the input of the same layer."""
    spec = unequal_spec()
    decoder, tokens = integrated(spec), some_tokens(spec)
    assert decoder.integration is not None and decoder.baseline is not None
    positions = torch.arange(tokens.shape[1])[None]
    rotary = decoder.rotary(positions)
    skips, adapters = decoder.integration.skips, decoder.integration.adapters
    assert skips is not None and adapters is not None
    with torch.no_grad():
        y = decoder.baseline.embedded(tokens, positions)
        unpruned = [y]
        for layer in decoder.baseline.layers:
            y = layer(y, rotary, None, 0, None)
            unpruned.append(y)
        x0 = decoder.layers[0](decoder.embedded(tokens, positions), rotary, None, 0, None)
        x1 = decoder.layers[1](x0, rotary, None, 1, None)
        x2 = decoder.layers[2](adapters[0](skips[0](x1, x1), unpruned[2]), rotary, None, 2, None)
        x3 = decoder.layers[3](adapters[1](skips[1](x2, x0), unpruned[3]), rotary, None, 3, None)
        assert torch.equal(decoder(tokens), decoder.logits(x3))


def shape(name: str, *, skips: bool = True, baseline: bool = True, rank: int | None = None) -> ModelSpec:
    """A known shape with an integration."""
    spec = family_of(KNOWN_SHAPES[name]["model_type"]).spec_from_config(KNOWN_SHAPES[name])
    frozen = baseline_spec(Decoder.empty(spec)) if baseline else None
    return ModelSpec(**{**vars(spec), "integration": IntegrationSpec(skips, frozen, rank)})


@pytest.mark.parametrize(("name", "before", "after"), [("gpt2", 124.4e6, 138.7e6), ("gpt2-medium", 354.8e6, 405.5e6)])
def test_full_rank_has_the_growth_of_the_original_report(name, before, after):
    spec = shape(name)
    made = Decoder.empty(spec)
    counted = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert counted == spec.parameter_count(gates=True, baseline=False)
    assert counted == pytest.approx(after, rel=0.005)
    assert counted - spec.fusion_weights == pytest.approx(before, rel=0.005)
    assert sum(p.numel() for p in made.parameters()) == spec.parameter_count(gates=True)


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_low_rank_costs_less_than_one_percent(name):
    spec = shape(name, rank=16)
    assert 0 < spec.fusion_weights < 0.01 * (spec.parameter_count(baseline=False) - spec.fusion_weights)
    fusions = fresh_fusions(spec, 0, Decoder.empty(spec)) if name == "gpt2" else {}
    assert not fusions or sum(t.numel() for t in fusions.values()) == spec.fusion_weights


@pytest.mark.parametrize("configuration", FEATURES)
@pytest.mark.parametrize("name", SPECS)
def test_levels_0_and_1_cached_agree_with_uncached(name, configuration):
    decoder = integrated(SPECS[name], configuration)
    prompts = [[3, 1, 4, 1, 5], [9, 2]]  # of unequal lengths: padding reaches the baseline too
    for level in (0, 1):
        engine = make_engine(decoder, level)
        steps = list(generate_tokens(engine, prompts, 6))
        logits = [torch.tensor(engine.prefill(prompts, 4))]
        logits += [torch.tensor(engine.decode_one_token([7, 8])) for _ in range(3)]
        for row, prompt in enumerate(prompts):
            whole = torch.tensor([[*prompt, *[7 + row] * 3]])
            with torch.no_grad():
                expected = decoder(whole)[0, len(prompt) - 1 :]
                assert largest_difference(torch.stack([step[row] for step in logits]), expected) < 1e-5
                text = list(prompt)
                for step in steps:
                    assert step[row] == int(decoder(torch.tensor([text]))[0, -1].argmax())
                    text.append(step[row])


def passes(engine: Engine, prompts: list[list[int]]) -> list[np.ndarray]:
    """Logits of a prompt pass and of three decode steps."""
    steps = [engine.prefill(prompts, 4)]
    return steps + [engine.decode_one_token([token] * len(prompts)) for token in (7, 8, 9)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("name", SPECS)
def test_the_compiled_step_does_the_same(name, rank, threads):
    decoder = integrated(SPECS[name], "all", rank)
    compiled, eager = make_engine(decoder, 2, threads=threads), make_engine(decoder, 1)
    assert isinstance(compiled, NativeEngine)
    for prompts in ([[3, 1, 4, 1, 5], [9, 2]], [[3, 1, 4, 1, 5]]):
        for found, expected in zip(passes(compiled, prompts), passes(eager, prompts), strict=True):
            assert largest_difference(torch.tensor(found), torch.tensor(expected)) < 1e-5
    with torch.no_grad():
        text = [1, 2, 3, 4, 5, 6, 7]
        assert largest_difference(torch.tensor(compiled.score(text)), decoder(torch.tensor([text]))[0]) < 1e-5
    compiled.release()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_quantised_fusions_and_baseline_equal_their_own_dense_weights(name, rank, precision):
    spec = integrated(SPECS[name], "all", rank).spec
    arrays = {key: tensor.numpy() for key, tensor in integrated(SPECS[name], "all", rank).state_dict().items()}
    arrays = {key: np.ones_like(array) if key.endswith("gate") else array for key, array in arrays.items()}
    dense = dict(arrays)
    for key in (tensor.name for tensor in tensors_of(spec) if tensor.is_matrix and arrays[tensor.name].size):
        dense[key] = oracle.dequantised(arrays[key], precision if "layers." in key else "int8")
    packed = NativeEngine(NativeWeights.from_arrays(spec, arrays, precision))
    plain = NativeEngine(NativeWeights.from_arrays(spec, dense, "fp32"))
    for found, expected in zip(passes(packed, [[3, 1, 4, 1, 5]]), passes(plain, [[3, 1, 4, 1, 5]]), strict=True):
        # what is left is activations and keys and values in 16 bits
        assert largest_difference(torch.tensor(found), torch.tensor(expected)) < 0.1
    packed.release()
    plain.release()


def test_passes_that_are_cut_into_pieces_borrow_the_right_rows():
    """More tokens than one pass takes, from sequences of several lengths."""
    decoder = integrated(SPECS["llama-grouped"])
    prompts = [some_tokens(decoder.spec, 1, length, seed=length)[0].tolist() for length in (60, 41, 57, 55)]
    compiled, eager = make_engine(decoder, 2, threads=2), make_engine(decoder, 1)
    for found, expected in zip(passes(compiled, prompts), passes(eager, prompts), strict=True):
        assert largest_difference(torch.tensor(found), torch.tensor(expected)) < 1e-5


def test_calibration_reads_what_the_projections_of_an_integrated_model_read():
    decoder, windows = integrated(SPECS["gpt2"]), some_tokens(SPECS["gpt2"], batch=10, length=12)
    assert decoder.baseline is not None
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for prefix, model in (("", decoder), ("baseline.", decoder.baseline)):
        for i, block in enumerate(model.blocks):
            keep = functools.partial(seen.__setitem__, f"{prefix}layers.{i}.attn.qkv_proj")
            hooks.append(
                block.attn_norm.register_forward_hook(lambda m, a, y, keep=keep: keep(y.flatten(0, 1).double()))
            )
    with torch.no_grad():
        decoder(windows)
    for hook in hooks:
        hook.remove()
    weights = [tensor.name for tensor in tensors_of(decoder.spec) if tensor.name.endswith("qkv_proj.weight")]
    names = [name.removesuffix(".weight") for name in weights]
    assert any(name.startswith("baseline.") for name in names) and set(names) == set(seen)
    for name, grams in zip(names, input_grams(decoder, windows), strict=True):
        np.testing.assert_allclose(grams[name], seen[name].T @ seen[name], rtol=1e-4, atol=1e-3)


def test_an_integrated_folder_is_quantised_on_text_and_generates(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(LETTERS[i * i % 16] for i in range(3000)))
    decoder = integrated(dataclasses.replace(SPECS["llama-grouped"], vocab_size=17))
    save_checkpoint(decoder, tmp_path / "m", letter_tokenizer(), Record())
    for precision, how in (("int8", []), ("int4", ["--calibration", str(text), "--calibration-tokens", "256"])):
        out = str(tmp_path / precision)
        assert main(["quantize", str(tmp_path / "m"), "--precision", precision, *how, "-o", out]) == 0
        capsys.readouterr()
        ask = ["generate", out, "a b a b a b", "--max-new-tokens", "8"]
        assert main(ask) == 0
        plain = capsys.readouterr().out
        assert main([*ask, "--lookup"]) == 0
        assert capsys.readouterr().out == plain and len(plain) > 8


def test_a_quantised_integration_is_saved_and_loaded(tmp_path):
    decoder = integrated(SPECS["gpt2"])
    weights = pack(decoder, "int8")
    weights.save(tmp_path / "packed.safetensors")
    again = NativeEngine(NativeWeights.load(tmp_path / "packed.safetensors"))
    assert again.spec == decoder.spec
    expected = NativeEngine(weights).prefill([[1, 2, 3]], 1)
    assert (again.prefill([[1, 2, 3]], 1) == expected).all()


@pytest.mark.parametrize("configuration", FEATURES)
def test_round_trip_needs_nothing_else(configuration, tmp_path):
    decoder, tokens = integrated(unequal_spec(), configuration), some_tokens(unequal_spec())
    save_checkpoint(decoder, tmp_path / "a", None, Record())
    again = load_checkpoint(tmp_path / "a")
    assert again.spec == decoder.spec
    assert {n for n, p in again.named_parameters() if not p.requires_grad} == {
        n for n in again.state_dict() if n.startswith("baseline.")
    }
    with torch.no_grad():
        assert torch.equal(again(tokens), decoder(tokens))
    bytes_written = (tmp_path / "a" / "model.safetensors").stat().st_size
    assert bytes_written == pytest.approx(4 * decoder.spec.parameter_count(gates=True), rel=0.1)


def test_hugging_face_loads_generates_and_saves(tmp_path):
    decoder, tokens = integrated(SPECS["llama-grouped"]), some_tokens(SPECS["llama-grouped"], batch=1, length=5)
    save_checkpoint(decoder, tmp_path / "a", None, Record())
    model = SentinelForCausalLM.from_pretrained(tmp_path / "a")
    grown = tokens
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, decoder(tokens))
        for _ in range(6):
            grown = torch.cat((grown, decoder(grown)[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0), grown)
    model.save_pretrained(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "b")(tokens), decoder(tokens))


@pytest.mark.parametrize("rank", [4, None])
def test_training_reaches_all_that_is_new_and_nothing_of_the_baseline(rank):
    unpruned, tokens = filled_decoder(SPECS["gpt2"]), some_tokens(SPECS["gpt2"])
    student = integrate(half_of_the_heads(unpruned), "all", rank=rank, baseline=unpruned)
    assert student.baseline is not None
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(3):  # what starts at zero moves first, and the rest of its fusion after it
        optimiser.zero_grad()
        target = unpruned(tokens).detach().softmax(-1)
        loss = torch.nn.functional.cross_entropy(student(tokens).flatten(0, 1), target.flatten(0, 1))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in student.named_parameters():
        if name.startswith("baseline."):
            assert parameter.grad is None and torch.equal(parameter, before[name])
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_an_elastic_model_keeps_its_levels(tmp_path):
    dense, tokens = expand_kv(filled_decoder(SPECS["llama-grouped"])), some_tokens(SPECS["llama-grouped"])
    order = criterion_named("magnitude").order(Subject(dense), 0.5, 0.5)
    plans = [order.plan(0.3, 0.0), order.plan(0.5, 0.5)]
    elastic = make_elastic(dense, order, plans, [compact(dense, plan) for plan in plans])
    made = integrate(elastic, "all", rank=4, baseline=in_nested_order(dense, order))
    with torch.no_grad():
        for parameter in (p for n, p in made.named_parameters() if n.endswith("up.weight")):
            parameter.fill_(0.01)
    save_checkpoint(made, tmp_path / "a", None, Record())
    again = load_checkpoint(tmp_path / "a")
    for heads, neurons in ((0.5, 0.5), (0.0, 0.0), (0.3, 0.0)):
        for model in (elastic, made, again):
            model.set_width(heads, neurons)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            assert torch.equal(again(tokens), made(tokens))
            assert largest_difference(made(tokens), elastic(tokens)) > 1e-4
            head_by_head = torch.tensor(make_engine(made, 0).prefill(tokens.tolist(), 1))
            assert largest_difference(head_by_head, made(tokens)[:, -1]) < 1e-5
            compiled = torch.tensor(make_engine(made, 2).prefill(tokens.tolist(), 1))
            assert largest_difference(compiled, made(tokens)[:, -1]) < 1e-5


def test_spec_round_trip_and_arithmetic():
    decoder = integrated(unequal_spec())
    assert ModelSpec.from_json(decoder.spec.to_json()) == decoder.spec
    assert "integration" not in unequal_spec().to_dict()
    assert sum(p.numel() for p in decoder.parameters()) == decoder.spec.parameter_count(gates=True)
    unread = {"baseline.final_norm.weight", "embed.weight", "baseline.embed.weight"}
    gates = {n for n in decoder.state_dict() if n.endswith("attn.gate")}
    streamed = sum(p.numel() for n, p in decoder.named_parameters() if n not in unread | gates)
    rows = 2 * decoder.spec.n_embd  # an embedding row of each model
    assert decoder.spec.streamed_weights_per_token() == streamed + rows + decoder.spec.vocab_size * decoder.spec.n_embd


def test_what_does_not_fit_is_refused():
    decoder = filled_decoder(SPECS["gpt2"])
    single = ModelSpec(**{**vars(decoder.spec), "layers": decoder.spec.layers[:1]})
    longer = ModelSpec(**{**vars(decoder.spec), "layers": (*decoder.spec.layers, decoder.spec.layers[0])})
    made = integrate(decoder, "all", rank=4)
    for said, call in {
        "configuration 'none'.*original, all, no-baseline, no-unet, minimal": lambda: integrate(decoder, "none"),
        "at least two layers": lambda: integrate(filled_decoder(single), "no-baseline", rank=4),
        "rank 49 is above the model's width of 48": lambda: integrate(decoder, rank=49),
        "rank .* at least 1": lambda: integrate(decoder, rank=0),
        "already": lambda: integrate(made, rank=4),
        "plain model": lambda: integrate(decoder, rank=4, baseline=made),
        "4 layers, but the model 3": lambda: integrate(decoder, rank=4, baseline=filled_decoder(longer)),
        "n_embd|vocab": lambda: integrate(decoder, rank=4, baseline=filled_decoder(shape_of_width(24))),
        "prune first": lambda: Pruner(made, PruningSettings(), windows()).order(0.5, 0.0),
    }.items():
        with pytest.raises(InputError, match=said):
            call()


def shape_of_width(width: int) -> ModelSpec:
    return ModelSpec(**{**vars(SPECS["gpt2"]), "n_embd": width})


def windows():
    from sentinel.adapt.text.corpora import Windows

    return Windows(some_tokens(SPECS["gpt2"]), ())
