"""What a family of models is: how its config becomes a specification and its weights the decoder's, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sentinel.models.families.config import ConfigReader
from sentinel.models.families.gguf import GGUFLayout
from sentinel.models.families.weights import Rule, Stored
from sentinel.models.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """One Hugging Face ``model_type``.

    read: the specification of a config, field by field; what is left in the reader is refused by name.
    write: the config of a specification whose layers are all alike; `InputError` for what the family does not have.
    rules: every tensor of the checkpoint. embedding: the name of the token embedding there. rename: names as Hugging
    Face's class has them now, for older checkpoints. gguf: how llama.cpp keeps the family, if it does.
    """

    model_type: str
    architecture: str
    read: Callable[[ConfigReader], ModelSpec]
    write: Callable[[ModelSpec], dict[str, Any]]
    rules: Callable[[ModelSpec], list[Rule]]
    embedding: str
    rename: Callable[[Stored], Stored]
    gguf: GGUFLayout | None = None

    def spec_from_config(self, config: dict[str, Any]) -> ModelSpec:
        """Specification of a Hugging Face ``config.json``. Unsupported fields raise `InputError` by name."""
        reader = ConfigReader(self.model_type, config)
        spec = self.read(reader)
        reader.done()
        return spec

    def config_from_spec(self, spec: ModelSpec) -> dict[str, Any]:
        """Inverse of `spec_from_config`, for models whose layers are all alike."""
        return {"model_type": self.model_type, "architectures": [self.architecture], **self.write(spec)}
