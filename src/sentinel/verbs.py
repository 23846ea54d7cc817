"""Packages that are named like a verb can be called as one: `sentinel.adapt(...)`, `sentinel.report(...)`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

# By package, the function that a call of it is. Named as text, since it lies further up.
_FUNCTIONS = {"sentinel.adapt": "sentinel.api.adapting:adapt", "sentinel.report": "sentinel.api.measuring:report"}


class VerbPackage(ModuleType):
    """A package whose call is the function of its name."""

    @property
    def function(self) -> Callable[..., Any]:
        """What a call of the package does."""
        module, _, name = _FUNCTIONS[self.__name__].partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


def make_callable(package: str) -> None:
    """Let ``package``, which is being imported, be called."""
    sys.modules[package].__class__ = VerbPackage
