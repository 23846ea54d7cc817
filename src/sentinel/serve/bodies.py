"""Bodies of requests: which fields each path takes. What reads a body reads these, and the OpenAPI description is made of
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentinel.serve.declared import Flag, Number, Other, Refused, Text, Texts, Whole, refused

MOST_CHOICES = 16  # answers to one request
MOST_STOPS = 16
MOST_LIKELIEST = 20
MOST_TEXTS = 2048  # that are embedded in one request, as OpenAI's
MOST_TOKENS = 2**31
DEFAULT_COMPLETION = 16  # new tokens, as OpenAI's

MODEL_NAME, TOKEN_ID = "ModelName", "TokenId"  # schemas that depend on the model that is served
TEXT_PARTS = ("text",)  # what the content of a message may hold
RESPONSE_PARTS = ("input_text", "output_text", "text")

_TOKENS: dict[str, Any] = {"type": "array", "items": {"$ref": f"#/components/schemas/{TOKEN_ID}"}, "minItems": 1}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_TEXT_OR_TOKENS = {
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}


def _messages(parts: Sequence[str]) -> dict[str, Any]:
    """The schema of the messages of a chat, whose content is a text or such parts."""
    kinds = {"type": {"enum": list(parts)}, "text": {"type": "string"}}
    part = {"type": "object", "properties": kinds, "required": list(kinds)}
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}
    one = {"role": {"type": "string"}, "content": content}
    return {
        "type": "array", "minItems": 1, "items": {"type": "object", "properties": one, "required": list(one)},
    }  # fmt: skip


_FORMAT = {
    "type": ["object", "null"],
    "properties": {"type": {"enum": ["text", "json_object", "json_schema", "regex"]}},
    "required": ["type"],
}

MODEL = Text("model", "the name of the model that is served", {"$ref": f"#/components/schemas/{MODEL_NAME}"})
PROMPT = Other("prompt", "a text, token ids, or several of either", _TEXT_OR_TOKENS, required=True)
ONE_PROMPT = Other("prompt", "a text", {"type": "string"})
MESSAGES = Other("messages", "a chat so far; parts of text only", _messages(TEXT_PARTS), required=True)
FORM = Other("response_format", "JSON, JSON of a schema, or a regular expression that answers keep to", _FORMAT)
N = Whole("n", "answers to each prompt", 1, 1, MOST_CHOICES)
STOP = Texts("stop", "strings before which an answer ends", MOST_STOPS)
STREAM = Flag("stream", "send the answer as server-sent events while it grows")
STREAM_OPTIONS = Other("stream_options", "include_usage: count the tokens at the end of a stream", {
    "type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}},
})  # fmt: skip
IGNORE_EOS = Flag("ignore_eos", "go on after a token that ends the text")
SEED = Whole("seed", "with the same one the same answer is drawn", None, -(2**63), 2**63)
TEMPERATURE = Number("temperature", "0 takes the likeliest token", 1.0, 0, 2)
TOP_K = Whole("top_k", "draw from that many of the likeliest tokens; 0 or -1 from all", 0, -1, MOST_TOKENS)
TOP_P = Number("top_p", "draw from the likeliest tokens of that share", 1.0, 0, 1, above=True)
MIN_P = Number("min_p", "draw from tokens of at least that share of the likeliest one's chance", 0.0, 0, 1)
REPETITION = Number("repetition_penalty", "above 1 against tokens that were there", 1.0, 0, 10, above=True)
PRESENCE = Number("presence_penalty", "above 0 against tokens that the answer holds", 0.0, -2, 2)
FREQUENCY = Number("frequency_penalty", "likewise, for each time", 0.0, -2, 2)
BIAS = Other("logit_bias", "added to logits, by token id", {
    "type": ["object", "null"], "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": ["number", "null"], "minimum": -100, "maximum": 100},
})  # fmt: skip
LIKELIEST = Whole("logprobs", "chances of so many of the likeliest tokens too", None, 0, MOST_LIKELIEST)
TOP_LOGPROBS = Whole("top_logprobs", "with logprobs: so many of the likeliest tokens too", 0, 0, MOST_LIKELIEST)
LOGPROBS = Flag("logprobs", "tell the chance of each token")
MAX_TOKENS = Whole("max_tokens", "new tokens at most", DEFAULT_COMPLETION, 1, MOST_TOKENS)
MAX_CHAT_TOKENS = Whole("max_tokens", "the earlier name of max_completion_tokens", None, 1, MOST_TOKENS)
MAX_COMPLETION_TOKENS = Whole("max_completion_tokens", "new tokens at most", None, 1, MOST_TOKENS)
MODALITIES = Other("modalities", "text is all that there is", {"enum": [None, ["text"]]})

_SAMPLING = (SEED, TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY, BIAS)
_ANSWER = (*_SAMPLING, N, STOP, STREAM, STREAM_OPTIONS, IGNORE_EOS, FORM)
_NO_TOOLS = refused("tools", "tool_choice", "functions", "function_call", "audio", "prediction")
COMPLETION = (
    MODEL, PROMPT, MAX_TOKENS, LIKELIEST, *_ANSWER, *_NO_TOOLS, Refused("modalities"), Refused("best_of", (1,)),
    *refused("echo", "suffix"),
)  # fmt: skip
CHAT = (
    MODEL, MESSAGES, MAX_COMPLETION_TOKENS, MAX_CHAT_TOKENS, LOGPROBS, TOP_LOGPROBS, MODALITIES, *_ANSWER, *_NO_TOOLS,
)  # fmt: skip

INPUT = Other(
    "input", "a question, or the messages of a chat", {"anyOf": [_TEXT, _messages(RESPONSE_PARTS)]}, required=True
)
INSTRUCTIONS = Other("instructions", "a message of the system before the others", {"type": ["string", "null"]})
MAX_OUTPUT_TOKENS = Whole("max_output_tokens", "new tokens at most", None, 1, MOST_TOKENS)
TEXT = Other("text", "format: what answers keep to", {
    "type": ["object", "null"], "properties": {"format": {"anyOf": [_FORMAT, {"type": "null"}]}},
})  # fmt: skip
TRUNCATION = Other("truncation", "a prompt is never cut", {"enum": [None, "disabled"]})
METADATA = Other("metadata", "is given back", {"type": ["object", "null"]})
TAKEN_OVER = (
    MODEL,
    TEMPERATURE,
    TOP_P,
    TOP_K,
    MIN_P,
    REPETITION,
    SEED,
    IGNORE_EOS,
    STREAM,
)  # from a response to its chat
RESPONSE = (
    *TAKEN_OVER, INPUT, INSTRUCTIONS, MAX_OUTPUT_TOKENS, TEXT, TRUNCATION, METADATA,
    *refused(
        "background", "conversation", "include", "max_tool_calls", "previous_response_id", "prompt", "reasoning",
        "tools", "top_logprobs",
    ),
)  # fmt: skip

TEXTS = Other("input", "a text, token ids, or several of either", _TEXT_OR_TOKENS, required=True)
ENCODINGS = ("float", "base64")
ENCODING = Other("encoding_format", "base64: of float32, little-endian", {"enum": [None, *ENCODINGS]})
DIMENSIONS = Other("dimensions", "not supported: an embedding is as wide as the model", {"type": "null"})
EMBEDDING = (MODEL, TEXTS, ENCODING, DIMENSIONS)

TOKENIZE = (
    ONE_PROMPT,
    Other("messages", "a chat, in place of a prompt", {"anyOf": [_messages(TEXT_PARTS), {"type": "null"}]}),
)
TOKENS = Other("tokens", "token ids", {**_TOKENS, "minItems": 0}, required=True)
DETOKENIZE = (TOKENS,)
