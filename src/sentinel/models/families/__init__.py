"""One module per Hugging Face ``model_type``: config mapping and weight-name table."""

from __future__ import annotations

from typing import Any, Protocol

from sentinel.errors import InputError
from sentinel.models.families import gpt2, llama
from sentinel.models.families.weights import Rule, State
from sentinel.models.spec import ModelSpec


class Family(Protocol):
    """What a family module offers."""

    @property
    def MODEL_TYPE(self) -> str: ...

    @property
    def ARCHITECTURE(self) -> str: ...

    @property
    def EMBEDDING(self) -> str: ...

    def spec_from_config(self, config: dict[str, Any]) -> ModelSpec: ...

    def config_from_spec(self, spec: ModelSpec) -> dict[str, Any]: ...

    def weight_rules(self, spec: ModelSpec) -> list[Rule]: ...

    def normalise_names(self, state: State) -> State: ...


FAMILIES: dict[str, Family] = {gpt2.MODEL_TYPE: gpt2, llama.MODEL_TYPE: llama}


def family_of(model_type: str) -> Family:
    """The family module for a Hugging Face ``model_type``; `InputError` names what is supported otherwise."""
    if model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise InputError(f"model family {model_type!r} is not supported; the supported families are {supported}")
    return FAMILIES[model_type]
