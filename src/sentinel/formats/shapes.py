"""Configs of models whose shape is known without any download, as they were published."""

from __future__ import annotations

from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(
    model_type: str,
    vocab: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    **more: Any,
) -> dict[str, Any]:
    """A config with Llama's names of sizes."""
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        **more,
    }


def _rotary(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def _gpt2(layers: int, heads: int, width: int, model_type: str = "gpt2", **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "n_layer": layers, "n_head": heads, "n_embd": width, **more}


def _pythia(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    }


TIED = {"tie_word_embeddings": True}
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "smollm2-135m": _llama("llama", 49152, 576, 1536, 30, 9, 3, 8192, rms_norm_eps=1e-5, **_rotary(100000.0), **TIED),
    "smollm3-3b": _llama("smollm3", 128256, 2048, 11008, 36, 16, 4, 65536, **_rotary(5e6), **TIED),
    "llama-3.2-1b": _llama(
        "llama", 128256, 2048, 8192, 16, 32, 8, 131072, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE, **TIED
    ),
    "llama-3.2-3b": _llama(
        "llama", 128256, 3072, 8192, 28, 24, 8, 131072, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE, **TIED
    ),
    "mistral-7b": _llama("mistral", 32000, 4096, 14336, 32, 32, 8, 32768, rms_norm_eps=1e-5, sliding_window=4096),
    "qwen2.5-0.5b": _llama("qwen2", 151936, 896, 4864, 24, 14, 2, 32768, **_rotary(1e6), **TIED),
    "qwen3-0.6b": _llama("qwen3", 151936, 1024, 3072, 28, 16, 8, 40960, head_dim=128, **_rotary(1e6), **TIED),
    "gemma-2b": _llama("gemma", 256000, 2048, 16384, 18, 8, 1, 8192, head_dim=256),
    "gemma-2-2b": _llama("gemma2", 256000, 2304, 9216, 26, 8, 4, 8192, head_dim=256, sliding_window=4096),
    "gemma-3-270m": _llama("gemma3_text", 262144, 640, 2048, 18, 4, 1, 32768, head_dim=256, sliding_window=512),
    "phi-1.5": _llama("phi", 51200, 2048, 8192, 24, 32, 32, 2048, **_rotary(1e4, partial_rotary_factor=0.5)),
    "phi-3-mini": _llama("phi3", 32064, 3072, 8192, 32, 32, 32, 4096, rms_norm_eps=1e-5, sliding_window=2047),
    "granite-3.3-2b": _llama(
        "granite",
        *(49159, 2048, 8192, 40, 32, 8, 131072),
        rms_norm_eps=1e-5,
        embedding_multiplier=12.0,
        attention_multiplier=0.015625,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        **_rotary(1e7),
        **TIED,
    ),
    "olmo2-1b": _llama("olmo2", 100352, 2048, 8192, 16, 16, 16, 4096, rms_norm_eps=1e-6, **_rotary(500000.0)),
    "stablelm-2-1.6b": _llama(
        "stablelm",
        *(100352, 2048, 5632, 24, 32, 32, 4096),
        use_qkv_bias=True,
        **_rotary(1e4, partial_rotary_factor=0.25),
    ),
    "starcoder2-3b": _llama(
        "starcoder2", 49152, 3072, 12288, 30, 24, 2, 16384, sliding_window=4096, **_rotary(999999.4420358813), **TIED
    ),
    "starcoderbase-1b": _gpt2(24, 16, 2048, "gpt_bigcode", vocab_size=49152, n_positions=8192, n_inner=8192),
    "opt-125m": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 768,
    },
    "pythia-70m": _pythia(6, 8, 512),
    "pythia-160m": _pythia(12, 12, 768),
    "gpt-j-6b": _gpt2(28, 16, 4096, "gptj", vocab_size=50400, n_positions=2048, rotary_dim=64),
}
