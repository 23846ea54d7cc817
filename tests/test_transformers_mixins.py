"""`SentinelModel` and `SentinelForCausalLM` in the tests that Hugging Face's own models pass, for five shapes of model."""

from __future__ import annotations

import dataclasses
import re
import unittest
from typing import Any

import torch
from conftest import spec_of, unequal_spec
from transformers_tests import module_of

from sentinel.errors import InputError
from sentinel.formats.hugging_face.config import SentinelConfig
from sentinel.formats.hugging_face.model import SentinelForCausalLM, SentinelModel
from sentinel.models.spec import ModelSpec
from sentinel.models.width import Width

common, configurations, training = map(
    module_of, ("test_modeling_common", "test_configuration_common", "test_training_mixin")
)
# Hugging Face's tests tell models with a head from those without by name.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "sentinel": "SentinelModel"}
common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {
    **common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "sentinel": "SentinelForCausalLM"
}  # fmt: skip


def two_layers(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, layers=spec.layers[:2])


def without_heads(which: int) -> ModelSpec:
    """Unequal layers, that one without heads or neurons."""
    spec = unequal_spec()
    spec = dataclasses.replace(spec, layers=(spec.layers[0], spec.layers[3]))
    width = Width.full(spec)
    groups, neurons = list(width.groups), list(width.neurons)
    groups[which] = neurons[which] = 0
    return Width(tuple(groups), tuple(neurons)).of(spec)


class Subject:
    """What the tests ask of a model: its config, inputs and sizes."""

    batch_size, seq_length, is_training = 2, 7, True
    causal_lm_class, base_model_class = SentinelForCausalLM, SentinelModel

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        config = self.get_config()
        self.hidden_size, self.num_hidden_layers = config.hidden_size, config.num_hidden_layers
        self.num_attention_heads = spec.layers[0].n_head

    def get_config(self) -> SentinelConfig:
        return SentinelConfig(self.spec, bos_token_id=0, eos_token_id=1, pad_token_id=2)

    def prepare_config_and_inputs_for_common(self) -> tuple[SentinelConfig, dict[str, Any]]:
        tokens = common.ids_tensor([self.batch_size, self.seq_length], self.spec.vocab_size)
        return self.get_config(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


# Tests that say nothing here, and why; for the classes named, or for all.
LEFT_OUT = {
    "test_generation_tester_mixin_inheritance": "the source distribution has no tests of generation; ours stand in "
    "test_hugging_face_generation.py",
    "test_training_overfit": "one model is enough for a test that takes long",
    "test_tied_weights_keys": "sets tie_word_embeddings against the spec, which is refused; or takes tensors without "
    "elements for tied ones",
}
UNTIES = "unties a model that is tied by its spec, which is refused; the untied model passes"
TIED = {
    "test_load_save_without_tied_weights": UNTIES,
    "test_resize_embeddings_untied": UNTIES,
    "test_resize_embeddings_untied_no_reinit_on_post_init": UNTIES,
}
EMPTY = {
    **TIED,
    "test_torch_save_load": "asks for the largest of no numbers",
}
EMPTY_FIRST = {
    **EMPTY,
    "test_retain_grad_hidden_states_attentions": "the attention weights of a layer without heads have no gradient",
}
# Attention in half precision is the same code for every model: one is tried.
HALF_PRECISION = [name for name in dir(common.ModelTesterMixin) if re.search("eager_matches_sdpa.*(fp16|bf16)", name)]


def left_out(reasons: dict[str, str]):
    """A decorator of a class of tests: these are skipped, for these reasons."""

    def decorate(cls: type) -> type:
        for name, reason in reasons.items():
            assert hasattr(cls, name), f"{name} is no test"
            setattr(cls, name, unittest.skip(reason)(lambda self: None))
        return cls

    return decorate


class Common(common.ModelTesterMixin, training.TrainingTesterMixin):
    all_model_classes = (SentinelModel, SentinelForCausalLM)
    training_overfit_steps, training_overfit_learning_rate, training_overfit_log_freq = 60, 5e-3, 60
    spec: ModelSpec

    @property
    def model_tester(self) -> Subject:
        return Subject(self.spec)

    def test_config(self):
        tester = configurations.ConfigTester(self, SentinelConfig, spec=self.spec.to_dict())
        tester.run_common_tests()

    def test_resize_tokens_embeddings(self):
        """Hugging Face's, which passes up to where it sets another vocabulary than that of the spec."""
        for model_class in type(self).all_model_classes:
            self.all_model_classes = (model_class,)
            with self.assertRaisesRegex(InputError, "vocab_size is 4, but 97 by the spec"):
                super().test_resize_tokens_embeddings()

    def test_model_outputs_equivalence(self):
        self.has_attentions = all(layer.n_head for layer in self.spec.layers)  # else it asks for the largest of none
        super().test_model_outputs_equivalence()


@left_out({name: LEFT_OUT[name] for name in ("test_generation_tester_mixin_inheritance", "test_tied_weights_keys")})
class TestLlama(Common, unittest.TestCase):
    spec = two_layers(spec_of("llama-grouped"))


class Others(Common):
    pass


left_out(dict.fromkeys(HALF_PRECISION, "one model is enough for attention in half precision"))(Others)
left_out({name: reason for name, reason in LEFT_OUT.items() if name != "test_tied_weights_keys"})(Others)


@left_out(TIED)
class TestTied(Others, unittest.TestCase):
    spec = two_layers(spec_of("llama-multi-head-tied"))


@left_out(TIED)
class TestGPT2(Others, unittest.TestCase):
    spec = two_layers(spec_of("gpt2"))


@left_out({**LEFT_OUT, **EMPTY})
class TestEmptyLast(Others, unittest.TestCase):
    spec = without_heads(1)
    test_all_params_have_gradient = False  # those of the layer without heads and neurons have none


@left_out({**LEFT_OUT, **EMPTY_FIRST})
class TestEmptyFirst(Others, unittest.TestCase):
    spec = without_heads(0)
    test_all_params_have_gradient = False
