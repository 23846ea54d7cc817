"""Bodies of OpenAI's requests to what a batcher is asked."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentinel.infer.batch_request import Request
from sentinel.infer.grammar import Constraint, Grammars
from sentinel.infer.sampling import SamplingSettings
from sentinel.models.tokenizer import TextTokenizer
from sentinel.plain import is_list, is_object
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.forms import constraint_of

TOKEN_ID = re.compile(r"[0-9]{1,9}")
MOST_CHOICES = 16  # answers to one request
MOST_STOPS = 16
MOST_LIKELIEST = 20
DEFAULT_COMPLETION = 16  # new tokens, as OpenAI's
REFUSED = ("tools", "tool_choice", "functions", "function_call", "modalities", "audio", "prediction")
REFUSED_IN_COMPLETIONS = ("best_of", "echo", "suffix")


@dataclass(frozen=True)
class Limits:
    """Tokens: the model's context, the longest prompt, and the most new ones."""

    context: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Asked:
    """What one HTTP request asks for: an answer for each of ``requests``."""

    requests: list[Request]
    stream: bool
    include_usage: bool
    chat: bool

    @property
    def n_prompt_token(self) -> int:
        """Tokens of the prompts, each counted once for all of its answers."""
        return sum(len(tokens) for tokens in {id(request.prompt): request.prompt for request in self.requests}.values())


def completion(fields: Fields, tokenizer: TextTokenizer, limits: Limits, grammars: Grammars) -> Asked:
    """A request to ``/v1/completions``. Raises `ApiError`, or `InputError` for settings out of range."""
    best_of = fields.get("best_of")
    fields.refuse([name for name in (*REFUSED, *REFUSED_IN_COMPLETIONS) if name != "best_of" or best_of != 1])
    n_likeliest = fields.whole("logprobs", None, 0, MOST_LIKELIEST)
    prompts = [_encoded(prompt, tokenizer) for prompt in _prompts(fields.get("prompt"))]
    wanted = fields.whole("max_tokens", DEFAULT_COMPLETION, 1, 2**31)
    constraint = constraint_of(fields, grammars)
    return _asked(fields, prompts, tokenizer, limits, wanted, n_likeliest, constraint, chat=False)


def chat(fields: Fields, tokenizer: TextTokenizer, limits: Limits, grammars: Grammars) -> Asked:
    """A request to ``/v1/chat/completions``. Raises `ApiError`, or `InputError` for what the template can't take."""
    fields.refuse([name for name in REFUSED if name != "modalities"])
    if fields.get("modalities") not in (None, ["text"]):
        raise ApiError(400, "the model gives text only; leave out modalities", param="modalities")
    n_likeliest = fields.whole("top_logprobs", 0, 0, MOST_LIKELIEST)
    if not fields.flag("logprobs"):
        n_likeliest = None
    prompt = chat_prompt(fields, tokenizer)
    given = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    wanted, constraint = fields.whole(given, None, 1, 2**31), constraint_of(fields, grammars)
    return _asked(fields, [prompt], tokenizer, limits, wanted, n_likeliest, constraint, chat=True)


def chat_prompt(fields: Fields, tokenizer: TextTokenizer) -> list[int]:
    """Token ids of ``messages`` in the model's chat template."""
    if tokenizer.chat_template is None:
        raise ApiError(400, "the model has no chat template; ask /v1/completions", code="no_chat_template")
    messages = fields.get("messages")
    if not is_list(messages) or not messages:
        raise wrong("messages", "a list of messages", messages)
    return tokenizer.apply_chat([_message(i, message) for i, message in enumerate(messages)])


def _message(number: int, message: Any) -> dict[str, Any]:
    place = f"messages[{number}]"
    if not is_object(message) or not isinstance(message.get("role"), str):
        raise wrong(place, "an object with role and content", message)
    content = message.get("content")
    if is_list(content):
        if not all(
            is_object(part) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
        ):
            raise ApiError(400, f"{place}.content may hold parts of text only", param=f"{place}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise wrong(f"{place}.content", "a string", content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": content}


def _prompts(value: Any) -> Sequence[str | list[int]]:
    if isinstance(value, str) or (is_list(value) and value and all(type(token) is int for token in value)):
        return [value]
    if is_list(value) and value and all(isinstance(prompt, str) for prompt in value):
        return value
    if is_list(value) and value and all(is_list(p) and p and all(type(t) is int for t in p) for p in value):
        return value
    raise wrong("prompt", "a string, a list of strings, of token ids, or of lists of token ids", value)


def _encoded(prompt: str | list[int], tokenizer: TextTokenizer) -> list[int]:
    return tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _asked(
    fields: Fields,
    prompts: list[list[int]],
    tokenizer: TextTokenizer,
    limits: Limits,
    wanted: int | None,
    n_likeliest: int | None,
    constraint: Constraint | None,
    *,
    chat: bool,
) -> Asked:
    settings, n = _sampling(fields), fields.whole("n", 1, 1, MOST_CHOICES) or 1
    if n * len(prompts) > MOST_CHOICES:
        raise ApiError(400, f"{n * len(prompts)} answers are asked for at once; at most {MOST_CHOICES} are", param="n")
    stop = fields.texts("stop", MOST_STOPS)
    eos_ids = () if fields.flag("ignore_eos") else tokenizer.eos_ids
    requests: list[Request] = []
    for prompt in prompts:
        count = _new_tokens(len(prompt), wanted, limits)
        for number in range(n):
            drawn = replace(settings, seed=settings.seed + number)
            requests.append(Request(prompt, count, drawn, eos_ids, stop, n_likeliest, constraint))
    options = fields.get("stream_options")
    if options is not None and not is_object(options):
        raise wrong("stream_options", "an object", options)
    usage = Fields(options or {}).flag("include_usage")
    return Asked(requests, fields.flag("stream"), usage, chat)


def _new_tokens(length: int, wanted: int | None, limits: Limits) -> int:
    """Tokens to generate after a prompt of ``length``; `ApiError` where the prompt is empty, or does not fit."""
    if not length:
        raise ApiError(400, "the prompt is empty; give some text", param="prompt")
    code = "context_length_exceeded"
    if length > limits.prompt:
        raise ApiError(
            400, f"the prompt has {length} tokens, at most {limits.prompt} are taken", param="prompt", code=code
        )
    if length + (wanted or 1) > limits.context:
        raise ApiError(
            400,
            f"the prompt has {length} tokens, which with {wanted or 1} new ones is beyond the context of {limits.context}",
            param="prompt",
            code=code,
        )
    return min(limits.context - length if wanted is None else wanted, limits.new)


def _sampling(fields: Fields) -> SamplingSettings:
    seed = fields.whole("seed", None, -(2**63), 2**63)
    bias = fields.get("logit_bias") or {}
    if not is_object(bias) or not all(TOKEN_ID.fullmatch(token) for token in bias):
        raise wrong("logit_bias", "an object of numbers by token id", bias)
    values = Fields(bias)
    return SamplingSettings(
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_k=max(0, fields.whole("top_k", 0, -1, 2**31) or 0),
        top_p=fields.number("top_p", 1.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0, 10),
        seed=secrets.randbits(31) if seed is None else seed % 2**63,
        min_p=fields.number("min_p", 0.0, 0, 1),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        logit_bias=tuple((int(token), values.number(token, 0.0, -100, 100)) for token in bias),
    )
