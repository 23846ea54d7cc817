"""The benchmark suites: one module each, imported when it is run. `SUITES` is the table of them.

A suite is a module here with ``run(request) -> list[Result]``. Its line in the table names the options that it takes, with
their values, and what ``quick`` changes of them. Every speed of a suite is a ratio to a named reference that was measured
in turn with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sentinel.errors import InputError
from sentinel.models.record import SELF

if TYPE_CHECKING:
    from sentinel.measure.results import Result
    from sentinel.measure.suites.request import Request


@dataclass(frozen=True)
class Suite:
    """``name`` is the module's too; ``options`` are fields of `SuiteSettings`, ``quick`` their values for a quick run.

    A run of several suites spreads the rounds of this one over so many ``passes``; a quick run or a suite alone has one.
    ``several_prompts`` is true of one that takes several lengths of prompts, ``any_dtype`` of one that measures a model in
    the type it is held in, where others compute in fp32, ``needs_text`` of one that judges a model's text, which needs real
    weights and a tokenizer.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    needs_text: bool = False
    in_report: bool = True
    several_prompts: bool = False
    any_dtype: bool = False
    passes: int = 1

    @property
    def flags(self) -> str:
        """The options as they are written on the command line."""
        return ", ".join("--" + name.replace("_", "-") for name in self.options)

    def run(self, request: Request) -> list[Result]:
        """Measure; `InputError` for a model or settings that the suite can't measure."""
        return importlib.import_module(f"{__name__}.{self.name}").run(request)


PASSES = 3  # of a run, far apart, that the rounds of most suites are spread over
# Options of the suites that generate text.
_GENERATION = {"batch": 1, "prompt_tokens": 64, "new_tokens": 20, "rounds": 6}
_LEVELS = {"levels": (1, 2, 3), "precision": ("int8",)}

_SUITES = (
    Suite(
        "decode",
        "generation by every level and by Hugging Face, with peak memory",
        {**_GENERATION, "levels": (0, 1, 2, 3), "precision": ("int8", "int4")},
        {"rounds": 3, "new_tokens": 8, "levels": (1, 2, 3), "precision": ("int8",)},
        passes=PASSES,
        any_dtype=True,
    ),
    Suite(
        "quality",
        "perplexity and speed of every criterion at every pruning ratio",
        {
            "new_tokens": 10,
            "rounds": 5,
            "criteria": ("stepwise", "random"),  # the best one and chance; "all" takes three times as long
            "precision": ("int8", "int4"),
            "heads": (0.3, 0.5, 0.7),
            "calibration": SELF,
            "calibration_tokens": 4096,
            "text": "judges",
            "eval_tokens": 4096,
            "expand_kv": False,
        },
        # The same text as in a full run, so that the numbers are the same. Ranking heads the default way, and int4's
        # rounding, take many minutes.
        {"rounds": 3, "criteria": (), "precision": ("int8",)},
        needs_text=True,
    ),
    Suite(
        "pruning",
        "Hugging Face, level 0, levels 1-3 at every pruning ratio, heads alone and with neurons",
        {**_GENERATION, **_LEVELS, "heads": (0.0, 0.3, 0.5, 0.7), "neurons": None, "expand_kv": False},
        {"rounds": 3, "new_tokens": 8, "heads": (0.0, 0.5)},
        passes=PASSES,
        any_dtype=True,
    ),
    Suite(
        "levels",
        "levels 0-3, not pruned and with half of the heads",
        {**_GENERATION, **_LEVELS, "levels": (0, 1, 2, 3), "heads": (0.0, 0.5), "expand_kv": False},
        {"rounds": 3, "new_tokens": 8},
        passes=PASSES,
        any_dtype=True,
    ),
    Suite(
        "context",
        "decoding after 64-1,000 tokens at every pruning ratio: where removed heads pay",
        {
            "batch": 1,
            "new_tokens": 8,
            "rounds": 6,
            "levels": (3, 1),
            "precision": ("int8",),
            "heads": (0.0, 0.3, 0.5, 0.7),
            "lengths": (64, 128, 256, 512, 1000),
            "expand_kv": False,
        },
        {"rounds": 3, "heads": (0.0, 0.5), "lengths": (64, 1000)},
        passes=PASSES,
        any_dtype=True,
    ),
    Suite(
        "batch",
        "generation of 1-16 sequences at once",
        {"prompt_tokens": 64, "new_tokens": 8, "rounds": 6, **_LEVELS, "batches": (1, 2, 4, 8, 16)},
        {"rounds": 3, "new_tokens": 4, "prompt_tokens": 32, "batches": (1, 8)},
        passes=PASSES,
        any_dtype=True,
    ),
    Suite(
        "load",
        "time and memory to load and to the first token",
        {"prompt_tokens": 64, "rounds": 5},
        {"rounds": 1},
    ),
    Suite(
        "attention",
        "one attention layer, head by head against fused, 32-2,048 tokens",
        {
            "batch": 1,
            "rounds": 15,
            "lengths": (32, 64, 128, 256, 512, 1024, 2048),
            "heads": (0.0, 0.3, 0.5, 0.7),
            "expand_kv": False,
        },
        {"rounds": 3, "lengths": (32, 128, 512, 2048), "heads": (0.0, 0.5)},
        passes=PASSES,
    ),
    Suite(
        "draft",
        "generation of real text by level 2 with drafts and with lookup, beside level 2 alone",
        {"prompt_tokens": 64, "new_tokens": 64, "rounds": 5, "drafts": ("int8", "int4", "lookup"), "text": "built-in"},
        {"rounds": 3, "new_tokens": 32},
        needs_text=True,
        in_report=False,
    ),
    Suite(
        "peers",
        "generation by other engines that are installed, beside levels 2 and 3, per length of prompt and batch; of a "
        "pruned model also the unpruned one in each, and what of the removed bytes is saved in time",
        {
            "batches": (1,),
            "prompt_tokens": (64,),
            "new_tokens": 20,
            "rounds": 6,
            "precision": ("int8", "int4"),
            "unpruned": None,
        },
        {"rounds": 3},
        in_report=False,
        several_prompts=True,
    ),
    Suite(
        "serve",
        "sentinel serve under load: clients at once, a soak, a prefix twice, a long prompt beside a stream, shedding; and "
        "the servers of others that are installed",
        {
            "prompt_tokens": 64,
            "new_tokens": 32,
            "rounds": 5,
            "precision": ("int8",),
            "clients": (1, 4, 8, 16, 32),
            "seconds": 10.0,
            "soak": 60.0,
            "text": "built-in",
        },
        {"rounds": 3, "clients": (1, 8), "seconds": 3.0, "soak": 10.0},
        in_report=False,
    ),
    Suite(
        "prefill",
        "the first token after prompts of several lengths, and the arithmetic done for it",
        {
            "prompt_tokens": (16, 64, 256, 480),
            "rounds": 6,
            "levels": (1, 2, 3),
            "precision": ("int8", "int4"),
        },
        {"rounds": 3, "prompt_tokens": (64, 480), "precision": ("int8",)},
        in_report=False,
        several_prompts=True,
        any_dtype=True,
    ),
    Suite(
        "integration",
        "skips and baseline integration against the plain model: speed, parameters, perplexity after recovery",
        {
            **_GENERATION,
            "rounds": 5,
            "levels": (1, 3),
            "heads": (0.0, 0.5),
            "recovery_steps": 10,
            "calibration": SELF,
            "calibration_tokens": 2048,
            "text": "built-in",
            "eval_tokens": 4096,
        },
        {"rounds": 3, "prompt_tokens": 16, "new_tokens": 4, "levels": (1,), "recovery_steps": 0},
    ),
    Suite(
        "scaling",
        "what being adaptive costs models of several sizes: parameters, speed, memory",
        {**_GENERATION, "rounds": 5, "new_tokens": 10, "shapes": ("gpt2", "gpt2-medium", "gpt2-large")},
        {"rounds": 3, "prompt_tokens": 32, "new_tokens": 8, "shapes": ()},
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}


def suite_of(name: str) -> Suite:
    """The suite of that name; `InputError` when there is none."""
    if name not in SUITES:
        raise InputError(f"there is no suite {name!r}; the suites are {', '.join(SUITES)}")
    return SUITES[name]
