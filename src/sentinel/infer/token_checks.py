"""What no engine is asked to run: prompts and token ids that do not fit the model."""

from __future__ import annotations

from collections.abc import Sequence

from sentinel.errors import InputError
from sentinel.models.spec import ModelSpec


def check_prompts(spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse what can't be run: no prompt, an empty one, unknown ids, or more tokens than the model's context."""
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    if max_new_tokens < 1:
        raise InputError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
    for prompt in prompts:
        if not len(prompt):
            raise InputError("the prompt is empty; give at least one token")
        check_tokens(spec, prompt)
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > spec.max_seq_len:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's context of "
            f"{spec.max_seq_len}; shorten the prompt or ask for fewer new tokens"
        )


def check_tokens(spec: ModelSpec, tokens: Sequence[int]) -> None:
    """Refuse ids that the vocabulary does not have."""
    if len(tokens) and not 0 <= min(tokens) <= max(tokens) < spec.vocab_size:
        raise InputError(f"token ids must be between 0 and {spec.vocab_size - 1}")


def check_room(spec: ModelSpec, n_token: int) -> None:
    """Refuse a text of no token, or of more than the model's context."""
    if not 1 <= n_token <= spec.max_seq_len:
        raise InputError(f"a text of 1 to {spec.max_seq_len} tokens can be read, not one of {n_token}")
