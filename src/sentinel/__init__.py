"""Sentinel: adaptive transformers that are pruned, regrown and run fast on the machine at hand.

The public verbs, imported when first used:

    from sentinel import load, generate, evaluate, calibrate, Pruner, integrate, benchmark, SentinelForCausalLM
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sentinel.adapt.calibrate import calibrate
    from sentinel.adapt.controller import Controller, ControllerSettings
    from sentinel.adapt.integration import integrate
    from sentinel.adapt.prune import Pruner
    from sentinel.adapt.prune import Settings as PruningSettings
    from sentinel.adapt.recover import recover
    from sentinel.adapt.recovery_settings import RecoverySettings
    from sentinel.errors import InputError
    from sentinel.infer.engines import make_engine
    from sentinel.infer.generate import generate_text as generate
    from sentinel.measure.perplexity import evaluate
    from sentinel.measure.runner import run_suites as benchmark
    from sentinel.models.checkpoint import save_checkpoint
    from sentinel.models.hf import SentinelConfig, SentinelForCausalLM
    from sentinel.models.sources import load
    from sentinel.report.render import write_report

_PLACES = {
    "load": ("sentinel.models.sources", "load"),
    "save_checkpoint": ("sentinel.models.checkpoint", "save_checkpoint"),
    "SentinelConfig": ("sentinel.models.hf", "SentinelConfig"),
    "SentinelForCausalLM": ("sentinel.models.hf", "SentinelForCausalLM"),
    "calibrate": ("sentinel.adapt.calibrate", "calibrate"),
    "Controller": ("sentinel.adapt.controller", "Controller"),
    "ControllerSettings": ("sentinel.adapt.controller", "ControllerSettings"),
    "integrate": ("sentinel.adapt.integration", "integrate"),
    "Pruner": ("sentinel.adapt.prune", "Pruner"),
    "PruningSettings": ("sentinel.adapt.prune", "Settings"),
    "recover": ("sentinel.adapt.recover", "recover"),
    "RecoverySettings": ("sentinel.adapt.recovery_settings", "RecoverySettings"),
    "make_engine": ("sentinel.infer.engines", "make_engine"),
    "generate": ("sentinel.infer.generate", "generate_text"),
    "evaluate": ("sentinel.measure.perplexity", "evaluate"),
    "benchmark": ("sentinel.measure.runner", "run_suites"),
    "write_report": ("sentinel.report.render", "write_report"),
    "InputError": ("sentinel.errors", "InputError"),
}

__all__ = [
    "Controller",
    "ControllerSettings",
    "InputError",
    "Pruner",
    "PruningSettings",
    "RecoverySettings",
    "SentinelConfig",
    "SentinelForCausalLM",
    "benchmark",
    "calibrate",
    "evaluate",
    "generate",
    "integrate",
    "load",
    "make_engine",
    "recover",
    "save_checkpoint",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sentinel' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
