"""The engine against Hugging Face, against physically smaller models, and against itself."""

from __future__ import annotations

import dataclasses

import native_oracle as oracle
import numpy as np
import pytest
import torch
from conftest import spec_of
from family_configs import spec_named
from helpers import filled_decoder, resized, some_tokens
from native_oracle import TOKENS, engine_of

from sentinel.errors import InputError
from sentinel.infer.native import NativeEngine, NativeWeights, PackedWidth
from sentinel.infer.opening import make_engine
from sentinel.models.width import Width

BYTES = (
    0.015  # by which part of the largest logit rounding a small model's activations to bytes changes any, at the most
)
MODELS = {
    "gpt2": lambda: oracle.gpt2(),
    "gpt2 relu, odd sizes": lambda: oracle.gpt2(n_head=5, n_embd=35, n_inner=77, activation_function="relu"),
    "gpt2 gelu": lambda: oracle.gpt2(activation_function="gelu"),
    "llama": lambda: oracle.llama(),
    "llama, untied, three queries per key": lambda: oracle.llama(tied=False, n_head=6, n_kv_head=2, n_embd=60),
    "llama, multi-head": lambda: oracle.llama(n_head=3, n_kv_head=3),
    "llama, linear": lambda: oracle.llama(rope={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "llama, llama3": lambda: oracle.llama(
        rope={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    ),
}  # fmt: skip


def hf_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def stepwise(engine, tokens, n_prompt):
    """Logits after the prompt and after each further token."""
    sequence, first = engine.open(tokens[:n_prompt], len(tokens) - n_prompt + 1)
    found = [first, *(engine.step([sequence], [t])[0] for t in tokens[n_prompt:])]
    engine.close(sequence)
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_hugging_face(name):
    model = MODELS[name]()
    spec, arrays = oracle.canonical(model)
    exact = hf_logits(model, TOKENS)
    engine = engine_of(spec, arrays)
    np.testing.assert_allclose(engine.score(TOKENS), exact, atol=1e-5)
    np.testing.assert_allclose(stepwise(engine, TOKENS, 9), exact[8:], atol=1e-5)
    # int8 weights: the same model, a little less exact
    quantised = engine_of(spec, arrays, "int8").score(TOKENS)
    assert np.abs(quantised - exact).max() < 0.06 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("head", ["fp32", "int8", "int4"])
def test_quantised_model_equals_its_own_dense_weights(precision, head):
    """Dense float32 of the same quantised weights gives the same logits, but for activations rounded to bytes."""
    spec, arrays = oracle.canonical(oracle.gpt2(n_head=2, n_embd=70, n_inner=130))

    same = dict(arrays)
    for name, array in arrays.items():
        if name == "embed.weight":
            same[name] = oracle.dequantised(array, head)
        elif name.endswith("_proj.weight"):
            same[name] = oracle.dequantised(array, precision)
    engine = NativeEngine(NativeWeights.from_arrays(spec, arrays, precision, head_precision=head))
    exact = engine_of(spec, same).score(TOKENS)
    found, near = engine.score(TOKENS), BYTES * np.abs(exact).max()
    np.testing.assert_allclose(found, exact, atol=near)
    np.testing.assert_array_equal(stepwise(engine, TOKENS, 9), found[8:])


def unequal():
    """A model whose layers all differ, with a layer without heads, one without neurons and one with neither."""
    rng = np.random.default_rng(3)
    spec, _ = oracle.canonical(oracle.gpt2())
    sizes = ((6, 3, 12, 50), (0, 0, 16, 33), (2, 2, 16, 0), (0, 0, 4, 0), (4, 1, 33, 7))
    layers = tuple(resized(spec.layers[0], *size) for size in sizes)
    spec = dataclasses.replace(spec, layers=layers)
    a = {
        "embed.weight": rng.standard_normal((131, 48)), "positions.weight": rng.standard_normal((64, 48)),
        "final_norm.weight": rng.standard_normal(48), "final_norm.bias": rng.standard_normal(48),
    }  # fmt: skip
    for i, y in enumerate(layers):
        p = f"layers.{i}."
        for norm in ("attn_norm", "mlp_norm"):
            a[f"{p}{norm}.weight"], a[f"{p}{norm}.bias"] = rng.standard_normal(48), rng.standard_normal(48)
        a[f"{p}attn.gate"] = rng.random(y.n_head)
        for name, n, k in (
            ("attn.qkv_proj", y.qkv_rows, 48), ("attn.out_proj", 48, y.n_head * y.head_dim),
            ("mlp.up_proj", y.intermediate_size, 48), ("mlp.down_proj", 48, y.intermediate_size),
        ):  # fmt: skip
            a[f"{p}{name}.weight"] = 0.2 * rng.standard_normal((n, k))
            a[f"{p}{name}.bias"] = rng.standard_normal(n)
    return spec, {k: v.astype(np.float32) for k, v in a.items()}


def test_unequal_layers_and_gates():
    spec, arrays = unequal()
    exact = oracle.plain_logits(spec, arrays, TOKENS)
    engine = engine_of(spec, arrays)
    np.testing.assert_allclose(engine.score(TOKENS), exact, atol=2e-4)
    np.testing.assert_allclose(stepwise(engine, TOKENS, 5), exact[4:], atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_width_equals_a_physically_smaller_model(precision):
    spec, arrays = unequal()
    heads, neurons = [2, 0, 1, 0, 0], [37, 0, 0, 0, 7]
    engine = engine_of(spec, arrays, precision)
    before = engine.score(TOKENS)
    engine.set_width(Width(heads, neurons))
    small = oracle.sliced(spec, arrays, heads, neurons)
    found = engine.score(TOKENS)
    if precision == "fp32":
        np.testing.assert_allclose(found, engine_of(*small).score(TOKENS), atol=1e-5)
        np.testing.assert_allclose(found, oracle.plain_logits(*small, TOKENS), atol=2e-4)
    else:  # int8 scales are of whole rows, int4 groups end elsewhere: the same only roughly
        exact = oracle.plain_logits(*small, TOKENS)
        assert np.abs(found - exact).max() < {"int8": 0.05, "int4": 0.5}[precision] * np.abs(exact).max()
    np.testing.assert_array_equal(stepwise(engine, TOKENS, 6), found[5:])
    engine.set_width(Width.full(spec))
    np.testing.assert_array_equal(engine.score(TOKENS), before)


def test_a_width_with_projections_of_its_own(tmp_path):
    spec, arrays = oracle.canonical(oracle.gpt2())
    rng = np.random.default_rng(1)
    heads, neurons = [2, 1], [100, 33]
    own = {}
    for i in range(2):
        own[f"layers.{i}.attn.out_proj.weight"] = rng.standard_normal((48, heads[i] * 16)).astype(np.float32)
        own[f"layers.{i}.mlp.down_proj.weight"] = rng.standard_normal((48, neurons[i])).astype(np.float32)
        own[f"layers.{i}.mlp.down_proj.bias"] = rng.standard_normal(48).astype(np.float32)
    small, a = oracle.sliced(spec, arrays, heads, neurons)
    engine = engine_of(spec, arrays)
    width = PackedWidth.from_arrays(spec, Width(heads, neurons), own, "fp32")
    width.save(tmp_path / "width.safetensors", "fp32")
    engine.set_packed_width(PackedWidth.load(tmp_path / "width.safetensors", spec, "fp32"))
    np.testing.assert_allclose(engine.score(TOKENS), engine_of(small, a | own).score(TOKENS), atol=1e-5)
    engine.set_width(Width.full(spec))
    np.testing.assert_array_equal(engine.score(TOKENS), engine_of(spec, arrays).score(TOKENS))
    with pytest.raises(InputError, match=r"layers.0.attn.qkv_proj.weight"):
        wrong = {"layers.0.attn.qkv_proj.weight": np.zeros((1, 1), np.float32)}
        PackedWidth.from_arrays(spec, Width(heads, neurons), wrong, "fp32")


def test_layers_with_activations_of_their_own():
    spec = spec_of("gpt2")
    layers = [
        dataclasses.replace(layer, mlp=dataclasses.replace(layer.mlp, activation=name))
        for layer, name in zip(spec.layers, ("relu", "gelu", "silu"), strict=True)
    ]
    decoder = filled_decoder(dataclasses.replace(spec, layers=tuple(layers)))
    tokens = [t % spec.vocab_size for t in TOKENS]
    exact = decoder(torch.tensor([tokens])).detach()[0].numpy()
    found = make_engine(decoder, 2).score(tokens)
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_batch_with_unequal_prompts_equals_single_sequences(precision):
    spec, arrays = oracle.canonical(oracle.llama())
    rng = np.random.default_rng(2)
    atol = 1e-5 if precision == "fp32" else BYTES  # another order of sums may round an activation the other way
    prompts = [rng.integers(0, 131, n).tolist() for n in (1, 7, 40, 13, 2, 33, 40, 21, 5, 9)]  # 171: more than one pass
    batch = engine_of(spec, arrays, precision)
    single = engine_of(spec, arrays, precision)
    sequences, first = batch.open_all(prompts, 8)
    following = rng.integers(0, 131, (4, 10))
    steps = [batch.step(sequences, t) for t in following]
    some = batch.step([sequences[7], sequences[2]], [5, 6])
    for b, prompt in enumerate(prompts):
        np.testing.assert_allclose(single.prefill([prompt], 8)[0], first[b], atol=atol)
        for t, step in zip(following, steps, strict=True):
            np.testing.assert_allclose(single.decode_one_token([t[b]])[0], step[b], atol=atol)
        if b in (7, 2):
            last = single.decode_one_token([5 if b == 7 else 6])[0]
            np.testing.assert_allclose(last, some[0 if b == 7 else 1], atol=atol)


def test_long_prompt_in_several_passes():
    model = oracle.gpt2(context=300)
    spec, arrays = oracle.canonical(model)
    tokens = np.random.default_rng(5).integers(0, 131, 300).tolist()
    engine = engine_of(spec, arrays)
    np.testing.assert_allclose(stepwise(engine, tokens[:-1], 290), hf_logits(model, tokens)[289:-1], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_any_number_of_threads_gives_the_same_bits(precision):
    spec, arrays = unequal()
    engines = [engine_of(spec, arrays, precision, threads=n) for n in (1, 2, 3, 5)]
    results = [(e.score(TOKENS), stepwise(e, TOKENS, 9)) for e in engines]
    for other in results[1:]:
        np.testing.assert_array_equal(other[0], results[0][0])
        np.testing.assert_array_equal(other[1], results[0][1])


def test_greedy_tokens_equal_hugging_face():
    model = oracle.gpt2(n_layer=3)
    spec, arrays = oracle.canonical(model)
    exact = model.generate(
        torch.tensor([TOKENS[:10]]), attention_mask=torch.ones(1, 10, dtype=torch.long), max_new_tokens=40,
        do_sample=False, pad_token_id=0, eos_token_id=None,
    )[0, 10:].tolist()  # fmt: skip
    engine = engine_of(spec, arrays)
    sequence, first = engine.open(TOKENS[:10], 40)
    found = [int(first.argmax())]
    while len(found) < 40:
        found += engine.step_greedy([sequence], found[-1:]).tolist()
    assert found == exact


@pytest.mark.parametrize("size", [7e4, 1e-7])
@pytest.mark.parametrize("level", [2, 3])
def test_keys_and_values_beyond_half_precision(level, size):
    """Too large and too small ones, in prompts and in tokens that are decoded, for several sequences."""
    decoder = filled_decoder(spec_of("llama-multi-query-biases"))
    heads = decoder.spec.layers[0].n_head
    with torch.no_grad():
        for block in decoder.blocks:
            dim = block.attn.layer.head_dim
            values = block.attn.qkv_proj
            if size < 1:
                values.weight[(heads + 1) * dim :] *= size
                values.bias[(heads + 1) * dim :] *= size
                block.attn.out_proj.weight /= size
            else:
                values.bias[(heads + 1) * dim :] = size
    tokens = [t % decoder.spec.vocab_size for t in TOKENS[:20]]
    exact = decoder(torch.tensor([tokens])).detach()[0].numpy()
    engine = make_engine(decoder, level, threads=2)
    scored = engine.score(tokens)[-5:]
    decoded = [
        engine.prefill([tokens[:16], tokens[:3]], 4)[0],
        *(engine.decode_one_token([t, 1])[0] for t in tokens[16:]),
    ]
    for found in (scored, np.array(decoded)):
        assert np.abs(found - exact[-5:]).max() < (1e-4 if level == 2 else 0.06) * np.abs(exact).max()
    assert engine.kv_bytes == 4


def test_the_cache_is_widened_in_the_middle_of_a_sequence():
    spec, arrays = oracle.canonical(oracle.gpt2())
    arrays["embed.weight"][7, 0] = 3e7  # the final norm makes nothing of it, but no key or value of its token is small
    arrays["layers.0.attn_norm.weight"][0] = 2e5
    engine, exact = (engine_of(spec, arrays, kv=kv) for kv in ("half", "fp32"))
    prompts = [[t for t in TOKENS if t != 7][:n] for n in (9, 2)]
    for one in (engine, exact):
        one.prefill(prompts, 8)
    assert engine.kv_bytes == 2
    right = exact.decode_one_token([7, 5])
    wide = engine.decode_one_token([7, 5])
    assert engine.kv_bytes == 4
    np.testing.assert_allclose(wide, right, atol=2e-3 * np.abs(right).max())
    for token in (3, 4):
        right = exact.decode_one_token([token, token])
        np.testing.assert_allclose(engine.decode_one_token([token, token]), right, atol=2e-3 * np.abs(right).max())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_save_and_load(tmp_path, precision):
    from safetensors import safe_open

    spec, arrays = unequal()
    weights = NativeWeights.from_arrays(spec, arrays, precision)
    path = tmp_path / "model.safetensors"
    weights.save(path)
    loaded = NativeWeights.load(path)
    assert loaded.spec == spec and loaded.precision == precision
    np.testing.assert_array_equal(NativeEngine(loaded).score(TOKENS), NativeEngine(weights).score(TOKENS))
    with safe_open(path, "np") as file:  # a file that others can read too
        assert set(file.keys()) == set(weights.parts)
        np.testing.assert_array_equal(file.get_tensor("final_norm.weight")[:48], arrays["final_norm.weight"])


def test_damaged_files_are_refused(tmp_path):
    spec, arrays = oracle.canonical(oracle.gpt2())
    path = tmp_path / "model.safetensors"
    NativeWeights.from_arrays(spec, arrays, "int8").save(path)
    good = path.read_bytes()
    path.write_bytes(good[:-2000] + bytes([good[-2000] ^ 1]) + good[-1999:])
    with pytest.raises(InputError, match="checksum"):
        NativeWeights.load(path)
    path.write_bytes(good[:-64])
    with pytest.raises(InputError, match="cut short"):
        NativeWeights.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="safetensors"):
        NativeWeights.load(path)


def test_wrong_weights_are_refused_by_name():
    spec, arrays = oracle.canonical(oracle.gpt2())
    for name, value in (("layers.1.mlp.up_proj.weight", np.nan), ("final_norm.bias", np.inf)):
        bad = dict(arrays) | {name: arrays[name].copy()}
        bad[name].reshape(-1)[5] = value
        with pytest.raises(InputError, match=name):
            NativeWeights.from_arrays(spec, bad, "int8")
    with pytest.raises(InputError, match=r"layers.0.attn.out_proj.bias"):
        NativeWeights.from_arrays(spec, {k: v for k, v in arrays.items() if k != "layers.0.attn.out_proj.bias"}, "fp32")
    with pytest.raises(InputError, match="shape"):
        NativeWeights.from_arrays(spec, arrays | {"embed.weight": arrays["embed.weight"][:5]}, "fp32")
    with pytest.raises(InputError, match="precision"):
        NativeWeights.from_arrays(spec, arrays, "int3")  # type: ignore[arg-type]


def test_what_an_engine_can_not_be_is_refused():
    spec, arrays = oracle.canonical(oracle.gpt2())
    with pytest.raises(InputError, match="threads must be at least 1"):
        engine_of(spec, arrays, threads=0)
    engine = engine_of(spec, arrays)
    with pytest.raises(InputError, match="layer 0"):
        engine.set_width(Width((4, 3), (1, 1)))
    with pytest.raises(InputError, match="at most 32 sequences at once, not 33"):
        engine.open_all([[1]] * 33, 1)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama-yarn", "mistral-window", "gemma2", "gemma3", "olmo2", "gpt_neox", "stablelm"])
def test_a_pass_of_several_tokens_has_the_bits_of_single_ones(name, precision):
    """So that proposals are verified as the tokens would be drawn alone, and the text is the same, not nearly."""
    decoder = filled_decoder(spec_named(name))
    engine = make_engine(decoder, 2 if precision == "fp32" else 3, precision=precision)
    tokens = some_tokens(decoder.spec, batch=1, length=48)[0].tolist()
    first, _ = engine.open(tokens[:1], 47)
    alone = np.concatenate([engine.step([first], [token]) for token in tokens[1:]])
    for start, count in ((1, 2), (5, 3), (9, 7), (16, 8), (24, 13), (37, 11)):
        sequence, logits = engine.open(tokens[:start], 48 - start)
        if start > 1:
            np.testing.assert_array_equal(logits, alone[start - 2])
        np.testing.assert_array_equal(
            engine.verify(sequence, tokens[start : start + count]), alone[start - 1 : start - 1 + count]
        )
        engine.close(sequence)
