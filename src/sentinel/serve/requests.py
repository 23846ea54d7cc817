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
from sentinel.serve import bodies
from sentinel.serve.declared import Other, refuse
from sentinel.serve.errors import ApiError
from sentinel.serve.fields import Fields, wrong
from sentinel.serve.forms import constraint_of

TOKEN_ID = re.compile(r"[0-9]{1,9}")


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
    refuse(fields, bodies.COMPLETION)
    n_likeliest = bodies.LIKELIEST.of(fields)
    prompts = texts_of(bodies.PROMPT, fields, tokenizer)
    wanted, constraint = bodies.MAX_TOKENS.of(fields), constraint_of(fields, grammars)
    return _asked(fields, prompts, tokenizer, limits, wanted, n_likeliest, constraint, chat=False)


def chat(fields: Fields, tokenizer: TextTokenizer, limits: Limits, grammars: Grammars) -> Asked:
    """A request to ``/v1/chat/completions``. Raises `ApiError`, or `InputError` for what the template can't take."""
    refuse(fields, bodies.CHAT)
    if bodies.MODALITIES.of(fields) not in (None, ["text"]):
        raise ApiError(400, "the model gives text only; leave out modalities", param="modalities")
    n_likeliest = bodies.TOP_LOGPROBS.of(fields)
    if not bodies.LOGPROBS.of(fields):
        n_likeliest = None
    prompt = chat_prompt(fields, tokenizer)
    newer, earlier = bodies.MAX_COMPLETION_TOKENS.of(fields), bodies.MAX_CHAT_TOKENS.of(fields)
    wanted, constraint = earlier if newer is None else newer, constraint_of(fields, grammars)
    return _asked(fields, [prompt], tokenizer, limits, wanted, n_likeliest, constraint, chat=True)


def chat_prompt(fields: Fields, tokenizer: TextTokenizer) -> list[int]:
    """Token ids of ``messages`` in the model's chat template."""
    if tokenizer.chat_template is None:
        raise ApiError(400, "the model has no chat template; ask /v1/completions", code="no_chat_template")
    messages = bodies.MESSAGES.of(fields)
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
            is_object(part) and part.get("type") in bodies.TEXT_PARTS and isinstance(part.get("text"), str)
            for part in content
        ):
            raise ApiError(400, f"{place}.content may hold parts of text only", param=f"{place}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise wrong(f"{place}.content", "a string", content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": content}


def texts_of(field: Other, fields: Fields, tokenizer: TextTokenizer) -> list[list[int]]:
    """Token ids of each text that a field holds: a string, strings, token ids, or lists of those."""
    return [tokenizer.encode(one) if isinstance(one, str) else list(one) for one in _several(field, fields)]


def _several(field: Other, fields: Fields) -> Sequence[str | list[int]]:
    value = field.of(fields)
    if isinstance(value, str) or (is_list(value) and value and all(type(token) is int for token in value)):
        return [value]
    if is_list(value) and value and all(isinstance(prompt, str) for prompt in value):
        return value
    if is_list(value) and value and all(is_list(p) and p and all(type(t) is int for t in p) for p in value):
        return value
    raise wrong(field.name, "a string, a list of strings, of token ids, or of lists of token ids", value)


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
    settings, n, most = _sampling(fields), bodies.N.of(fields) or 1, bodies.MOST_CHOICES
    if n * len(prompts) > most:
        raise ApiError(400, f"{n * len(prompts)} answers are asked for at once; at most {most} are", param="n")
    stop = bodies.STOP.of(fields)
    eos_ids = () if bodies.IGNORE_EOS.of(fields) else tokenizer.eos_ids
    requests: list[Request] = []
    for prompt in prompts:
        count = _new_tokens(len(prompt), wanted, limits)
        for number in range(n):
            drawn = replace(settings, seed=settings.seed + number)
            requests.append(Request(prompt, count, drawn, eos_ids, stop, n_likeliest, constraint))
    options = bodies.STREAM_OPTIONS.of(fields)
    if options is not None and not is_object(options):
        raise wrong("stream_options", "an object", options)
    usage = Fields(options or {}).flag("include_usage")
    return Asked(requests, bodies.STREAM.of(fields), usage, chat)


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
    seed, bias = bodies.SEED.of(fields), bodies.BIAS.of(fields) or {}
    if not is_object(bias) or not all(TOKEN_ID.fullmatch(token) for token in bias):
        raise wrong("logit_bias", "an object of numbers by token id", bias)
    values = Fields(bias)
    return SamplingSettings(
        temperature=bodies.TEMPERATURE.of(fields),
        top_k=max(0, bodies.TOP_K.of(fields) or 0),
        top_p=bodies.TOP_P.of(fields),
        repetition_penalty=bodies.REPETITION.of(fields),
        seed=secrets.randbits(31) if seed is None else seed % 2**63,
        min_p=bodies.MIN_P.of(fields),
        presence_penalty=bodies.PRESENCE.of(fields),
        frequency_penalty=bodies.FREQUENCY.of(fields),
        logit_bias=tuple((int(token), values.number(token, 0.0, -100, 100)) for token in bias),
    )
