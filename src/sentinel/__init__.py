"""Sentinel: adaptive transformers that are pruned, regrown and run fast on the machine at hand.

`load` gives a `Model`, which can ``generate``, ``prune``, ``quantize``, ``recover`` and ``save``; every command of the
command line is a function of the same name here. Each is imported when it is first used, so that importing this costs
nothing, and a quantised model runs without PyTorch.

>>> import sentinel
>>> sentinel.load("gpt2", random_weights=0).spec.n_layer
12
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sentinel.adapt.cycles.controller import Controller as Controller
    from sentinel.adapt.cycles.controller import ControllerSettings as ControllerSettings
    from sentinel.adapt.pruning.calibrate import calibrate as calibrate
    from sentinel.adapt.pruning.prune import Pruner as Pruner
    from sentinel.adapt.pruning.prune import PruningSettings as PruningSettings
    from sentinel.adapt.recovery.settings import RecoverySettings as RecoverySettings
    from sentinel.api.adapting import AdaptationText as AdaptationText
    from sentinel.api.adapting import adapt as adapt
    from sentinel.api.changing import importance as importance
    from sentinel.api.changing import integrate as integrate
    from sentinel.api.changing import prune as prune
    from sentinel.api.changing import quantize as quantize
    from sentinel.api.exporting import Exported as Exported
    from sentinel.api.exporting import export as export
    from sentinel.api.learning import recover as recover
    from sentinel.api.measuring import bench as bench
    from sentinel.api.measuring import evaluate as evaluate
    from sentinel.api.measuring import evaluate_tasks as evaluate_tasks
    from sentinel.api.measuring import profile as profile
    from sentinel.api.measuring import report as report
    from sentinel.api.measuring import sweep as sweep
    from sentinel.api.model import Model as Model
    from sentinel.api.model import generate as generate
    from sentinel.api.model import load as load
    from sentinel.api.optimizing import Optimized as Optimized
    from sentinel.api.optimizing import optimize as optimize
    from sentinel.errors import InputError as InputError
    from sentinel.formats.checkpoint import save_checkpoint as save_checkpoint
    from sentinel.formats.hugging_face.model import SentinelConfig as SentinelConfig
    from sentinel.formats.hugging_face.model import SentinelForCausalLM as SentinelForCausalLM
    from sentinel.infer.model_info import model_info as info
    from sentinel.infer.opening import make_engine as make_engine
    from sentinel.infer.sampling import SamplingSettings as SamplingSettings
    from sentinel.measure.compare import compare as compare
    from sentinel.measure.results import Result as Result
    from sentinel.measure.results import ResultSet as ResultSet
    from sentinel.measure.suites.request import SuiteSettings as SuiteSettings
    from sentinel.measure.sweep import SweepSettings as SweepSettings
    from sentinel.models.record import Record as Record
    from sentinel.report.recommend import Demand as Demand
    from sentinel.report.recommend import recommend as recommend
    from sentinel.report.render import write_report as write_report

# Where each public name is: its module, and the name that it has there, if that is another.
_PLACES = {
    "AdaptationText": "sentinel.api.adapting",
    "Controller": "sentinel.adapt.cycles.controller",
    "ControllerSettings": "sentinel.adapt.cycles.controller",
    "Demand": "sentinel.report.recommend",
    "Exported": "sentinel.api.exporting",
    "InputError": "sentinel.errors",
    "Model": "sentinel.api.model",
    "Optimized": "sentinel.api.optimizing",
    "Pruner": "sentinel.adapt.pruning.prune",
    "PruningSettings": "sentinel.adapt.pruning.prune",
    "Record": "sentinel.models.record",
    "RecoverySettings": "sentinel.adapt.recovery.settings",
    "Result": "sentinel.measure.results",
    "ResultSet": "sentinel.measure.results",
    "SamplingSettings": "sentinel.infer.sampling",
    "SentinelConfig": "sentinel.formats.hugging_face.model",
    "SentinelForCausalLM": "sentinel.formats.hugging_face.model",
    "SuiteSettings": "sentinel.measure.suites.request",
    "SweepSettings": "sentinel.measure.sweep",
    "adapt": "sentinel.api.adapting",
    "bench": "sentinel.api.measuring",
    "calibrate": "sentinel.adapt.pruning.calibrate",
    "compare": "sentinel.measure.compare",
    "evaluate": "sentinel.api.measuring",
    "evaluate_tasks": "sentinel.api.measuring",
    "export": "sentinel.api.exporting",
    "generate": "sentinel.api.model:generate",
    "importance": "sentinel.api.changing",
    "info": "sentinel.infer.model_info:model_info",
    "integrate": "sentinel.api.changing",
    "load": "sentinel.api.model",
    "make_engine": "sentinel.infer.opening",
    "optimize": "sentinel.api.optimizing",
    "profile": "sentinel.api.measuring",
    "prune": "sentinel.api.changing",
    "quantize": "sentinel.api.changing",
    "recommend": "sentinel.report.recommend",
    "recover": "sentinel.api.learning",
    "report": "sentinel.api.measuring",
    "save_checkpoint": "sentinel.formats.checkpoint",
    "sweep": "sentinel.api.measuring",
    "write_report": "sentinel.report.render",
}

__all__ = [
    "AdaptationText",
    "Controller",
    "ControllerSettings",
    "Demand",
    "Exported",
    "InputError",
    "Model",
    "Optimized",
    "Pruner",
    "PruningSettings",
    "Record",
    "RecoverySettings",
    "Result",
    "ResultSet",
    "SamplingSettings",
    "SentinelConfig",
    "SentinelForCausalLM",
    "SuiteSettings",
    "SweepSettings",
    "adapt",
    "bench",
    "calibrate",
    "compare",
    "evaluate",
    "evaluate_tasks",
    "export",
    "generate",
    "importance",
    "info",
    "integrate",
    "load",
    "make_engine",
    "optimize",
    "profile",
    "prune",
    "quantize",
    "recommend",
    "recover",
    "report",
    "save_checkpoint",
    "sweep",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sentinel' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
