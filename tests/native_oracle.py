"""The tests' oracles: Hugging Face models as (spec, canonical arrays), a plain float64 model of any spec, kernels alone."""

from __future__ import annotations

import math

import numpy as np
from helpers import layer_of, resized

from sentinel.infer.native import NativeEngine, NativeWeights, memory
from sentinel.infer.native.blocks import padded
from sentinel.infer.native.kernels import dots, precision_int4, precision_int8
from sentinel.infer.native.kernels.inputs import COLUMNS
from sentinel.infer.native.kernels.precision_fp32 import float_block, half_block
from sentinel.infer.native.precisions import PRECISIONS, fp32, int4, int8
from sentinel.models.spec import ModelSpec, NormSpec, RopeSpec

TOKENS = np.random.default_rng(0).integers(0, 131, 40).tolist()


def gpt2(n_layer=2, n_head=3, n_embd=48, vocab=131, context=64, seed=0, **more):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_positions=context, n_embd=n_embd, n_layer=n_layer, n_head=n_head,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **more,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.1 * torch.randn_like(p)
    return model


def llama(n_layer=2, n_head=4, n_kv_head=2, n_embd=48, hidden=100, vocab=131, context=64, tied=True, rope=None, seed=0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=n_embd, intermediate_size=hidden, num_hidden_layers=n_layer,
        num_attention_heads=n_head, num_key_value_heads=n_kv_head, max_position_embeddings=context,
        tie_word_embeddings=tied, rope_parameters=rope or {"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p += 0.1 * torch.randn_like(p)
    return model


def _by_group(q, k, v, d, group_size):
    parts = []
    for g in range(len(k) // d):
        parts += [q[g * group_size * d : (g + 1) * group_size * d], k[g * d : (g + 1) * d], v[g * d : (g + 1) * d]]
    return np.concatenate(parts)


def canonical(model):
    """(ModelSpec, arrays) of a Hugging Face GPT-2 or Llama."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    return _from_gpt2(model.config, state) if model.config.model_type == "gpt2" else _from_llama(model.config, state)


def _from_gpt2(c, s):
    d = c.n_embd // c.n_head
    inner = c.n_inner or 4 * c.n_embd
    biases = {"qkv_bias": True, "out_bias": True, "up_bias": True, "down_bias": True}
    layer = layer_of(c.n_head, c.n_head, d, inner, activation=c.activation_function, **biases)
    norm = NormSpec("layernorm", c.layer_norm_epsilon)
    spec = ModelSpec(
        "gpt2",
        c.vocab_size,
        c.n_embd,
        c.n_positions,
        (layer,) * c.n_layer,
        norm,
        tied_head=True,
        learned_positions=True,
    )
    a = {"embed.weight": s["transformer.wte.weight"], "positions.weight": s["transformer.wpe.weight"],
         "final_norm.weight": s["transformer.ln_f.weight"], "final_norm.bias": s["transformer.ln_f.bias"]}  # fmt: skip
    for i in range(c.n_layer):
        h, p = f"transformer.h.{i}.", f"layers.{i}."
        for theirs, ours in (("ln_1", "attn_norm"), ("ln_2", "mlp_norm")):
            for kind in ("weight", "bias"):
                a[p + f"{ours}.{kind}"] = s[h + f"{theirs}.{kind}"]
        w, b = s[h + "attn.c_attn.weight"].T, s[h + "attn.c_attn.bias"]
        a[p + "attn.qkv_proj.weight"] = _by_group(*np.split(w, 3), d, 1)
        a[p + "attn.qkv_proj.bias"] = _by_group(*np.split(b, 3), d, 1)
        names = (("attn.c_proj", "attn.out_proj"), ("mlp.c_fc", "mlp.up_proj"), ("mlp.c_proj", "mlp.down_proj"))
        for theirs, ours in names:
            a[p + ours + ".weight"] = np.ascontiguousarray(s[h + theirs + ".weight"].T)
            a[p + ours + ".bias"] = s[h + theirs + ".bias"]
    return spec, a


def _from_llama(c, s):
    d = c.hidden_size // c.num_attention_heads
    r = c.rope_parameters
    rope = RopeSpec(
        r["rope_theta"], r["rope_type"], factor=r.get("factor", 1.0), low_freq_factor=r.get("low_freq_factor", 1.0),
        high_freq_factor=r.get("high_freq_factor", 4.0),
        original_max_seq_len=r.get("original_max_position_embeddings", 8192),
    )  # fmt: skip
    layer = layer_of(c.num_attention_heads, c.num_key_value_heads, d, c.intermediate_size, gated=True, rope=rope)
    norm = NormSpec("rmsnorm", c.rms_norm_eps)
    spec = ModelSpec(
        "llama", c.vocab_size, c.hidden_size, c.max_position_embeddings, (layer,) * c.num_hidden_layers, norm,
        tied_head=c.tie_word_embeddings,
    )  # fmt: skip
    a = {"embed.weight": s["model.embed_tokens.weight"], "final_norm.weight": s["model.norm.weight"]}
    if not spec.tied_head:
        a["lm_head.weight"] = s["lm_head.weight"]
    for i in range(c.num_hidden_layers):
        h, p = f"model.layers.{i}.", f"layers.{i}."
        a[p + "attn_norm.weight"] = s[h + "input_layernorm.weight"]
        a[p + "mlp_norm.weight"] = s[h + "post_attention_layernorm.weight"]
        q, k, v = (s[h + f"self_attn.{x}_proj.weight"] for x in "qkv")
        a[p + "attn.qkv_proj.weight"] = _by_group(q, k, v, d, layer.group_size)
        a[p + "attn.out_proj.weight"] = s[h + "self_attn.o_proj.weight"]
        for x in ("gate", "up", "down"):
            a[p + f"mlp.{x}_proj.weight"] = s[h + f"mlp.{x}_proj.weight"]
    return spec, a


def sliced(spec, arrays, heads, neurons):
    """The physically smaller model of a level: (spec, arrays)."""
    a = dict(arrays)
    layers = []
    for i, y in enumerate(spec.layers):
        p, g, f = f"layers.{i}.", heads[i], neurons[i]
        layers.append(resized(y, g * y.group_size, g, y.head_dim, f))
        rows, cols = g * (y.group_size + 2) * y.head_dim, g * y.group_size * y.head_dim
        for name, cut in (("attn.qkv_proj", rows), ("mlp.up_proj", f), ("mlp.gate_proj", f)):
            for kind in ("weight", "bias"):
                if f"{p}{name}.{kind}" in a:
                    a[f"{p}{name}.{kind}"] = a[f"{p}{name}.{kind}"][:cut]
        for name, cut in (("attn.out_proj", cols), ("mlp.down_proj", f)):
            a[f"{p}{name}.weight"] = a[f"{p}{name}.weight"][:, :cut]
        if f"{p}attn.gate" in a:
            a[f"{p}attn.gate"] = a[f"{p}attn.gate"][: g * y.group_size]
    new = {f: getattr(spec, f) for f in spec.__dataclass_fields__} | {"layers": tuple(layers)}
    return ModelSpec(**new), a


def engine_of(spec, arrays, precision="fp32", **options):
    return NativeEngine(NativeWeights.from_arrays(spec, arrays, precision), **options)


_ACT = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def plain_logits(spec, arrays, tokens):
    """Logits [T, V] in float64, from the definitions (learned positions only)."""
    a = {k: np.asarray(v, np.float64) for k, v in arrays.items()}

    def norm(x, name):
        if spec.norm.kind == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.norm.eps) * a[name + ".weight"]
        return x + a[name + ".bias"] if spec.norm.kind == "layernorm" else x

    def linear(x, name):
        y = x @ a[name + ".weight"].T if name + ".weight" in a else 0
        return y + a.get(name + ".bias", 0)

    n = len(tokens)
    x = a["embed.weight"][tokens] + a["positions.weight"][:n]
    for i, y in enumerate(spec.layers):
        p, d, gs = f"layers.{i}.", y.head_dim, y.group_size
        act = _ACT[y.mlp.activation]
        if y.n_head:
            qkv = linear(norm(x, p + "attn_norm"), p + "attn.qkv_proj").reshape(n, y.n_kv_head, gs + 2, d)
            heads = []
            for h in range(y.n_head):
                q, k, v = qkv[:, h // gs, h % gs], qkv[:, h // gs, gs], qkv[:, h // gs, gs + 1]
                s = q @ k.T / math.sqrt(d) + np.triu(np.full((n, n), -np.inf), 1)
                w = np.exp(s - s.max(-1, keepdims=True))
                heads.append(w / w.sum(-1, keepdims=True) @ v * a.get(p + "attn.gate", np.ones(y.n_head))[h])
            x = x + linear(np.concatenate(heads, 1), p + "attn.out_proj")
        elif y.attention.out_bias:
            x = x + a[p + "attn.out_proj.bias"]
        if y.intermediate_size:
            u = norm(x, p + "mlp_norm")
            hidden = linear(u, p + "mlp.up_proj")
            hidden = act(linear(u, p + "mlp.gate_proj")) * hidden if y.mlp.gated else act(hidden)
            x = x + linear(hidden, p + "mlp.down_proj")
        elif y.mlp.down_bias:
            x = x + a[p + "mlp.down_proj.bias"]
    return norm(x, "final_norm") @ a["embed.weight" if spec.tied_head else "lm_head.weight"].T


def dequantised(weight, kind):
    """The float32 weights that a packed matrix of that precision stands for."""
    stored, scale = PRECISIONS[kind].quantise(weight)
    return PRECISIONS[kind].dequantise(stored, scale)[:, : weight.shape[1]]


def placed(array):
    """The array's bytes in an aligned buffer, as packed weights are."""
    data = memory.buffer(array.nbytes + 4096)
    data[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return data


def run_float(x, w, half=False):
    """Products of one block, x [t, k] @ w [up to 32, k].T, as the float kernel makes them."""
    t, k = x.shape
    y = np.zeros((t, 32), np.float32)
    packed = fp32.pack((w,))
    data = placed(packed.view(np.float32).astype(np.float16) if half else packed)
    block, stride = (half_block, 64) if half else (float_block, 128)
    block(t, x.ctypes.data, x.strides[0], data.ctypes.data, stride, k, 0, y.ctypes.data, y.strides[0])
    return y[:, : w.shape[0]]


def int8_rows(x, offset=dots.INT8.OFFSET):
    """Float rows x [t, k] as the int8 kernel reads them: bytes, scales, and what sums start from where weights are so much
    larger; and, as float64, the rows that these stand for."""
    q, scales, sums, meant = _rounded(x, precision_int8.quantise_row)
    wide = np.pad(q.astype(int), ((0, 0), (0, -q.shape[1] % COLUMNS)))
    starts = -offset * wide.reshape(len(q), -1, COLUMNS).sum(2)
    if offset == dots.INT8.OFFSET:
        np.testing.assert_array_equal(sums[:, :-1].view(np.int32), starts)
    sums[:, :-1] = starts.astype(np.int32).view(np.float32)
    return q, scales, sums, meant


def int4_rows(x):
    """Likewise of the int4 kernel, whose sums are those of the rows."""
    return _rounded(x, precision_int4.quantise_row)


def _rounded(x, quantise_row):
    x = np.ascontiguousarray(x, np.float32)
    t, k = x.shape
    n_group = -(-k // COLUMNS)
    q = np.full((t, padded(k)), 99, np.int8)
    scales, sums = np.zeros((t, n_group + 1), np.float32), np.zeros((t, n_group + 1), np.float32)
    for i in range(t):
        quantise_row(*(array[i].ctypes.data for array in (x, q, scales, sums)), k)
    with np.errstate(invalid="ignore"):  # rows that are not finite
        meant = q[:, :k] * np.repeat(scales[:, :-1].astype(float), COLUMNS, axis=1)[:, :k]
    return q, scales, sums, meant


def run_bytes(block, rows, packed, w_scale):
    """Products of one block of packed weights, up to 32 rows with a scale each, and of rounded rows."""
    q, scales, sums, _ = rows
    y, data = np.zeros((len(q), 32), np.float32), placed(packed)
    row_scale = np.zeros(32, np.float32)
    row_scale[: len(w_scale)] = w_scale
    block(
        len(q), q.ctypes.data, q.strides[0], scales.ctypes.data, sums.ctypes.data, scales.strides[0], data.ctypes.data,
        row_scale.ctypes.data, q.shape[1] // 32, 0, y.ctypes.data, y.strides[0],
    )  # fmt: skip
    return y[:, : len(w_scale)]


def run_int8(x, w, w_scale, block=precision_int8.int8_block, offset=dots.INT8.OFFSET):
    """Products of one block of whole numbers w [up to 32, k], with a scale per row, and of float rows x [t, k], rounded.

    Also the rows that were multiplied, as float64.
    """
    rows = int8_rows(x, offset)
    return run_bytes(block, rows, int8.pack((w,)), w_scale), rows[3]


def run_int4(x, values, step, low, w_scale, block=precision_int4.int4_block):
    """Likewise of weights values * step + low, by groups of 32."""
    rows = int4_rows(x)
    return run_bytes(block, rows, int4.pack((values, step, low)), w_scale), rows[3]


def dense_int4(values, step, low, scale=None):
    """The weights that packed int4 values stand for."""
    wide_step, wide_low = (np.repeat(v.astype(float), 32, axis=1)[:, : values.shape[1]] for v in (step, low))
    dense = values * wide_step + wide_low
    return dense if scale is None else dense * scale[:, None]
