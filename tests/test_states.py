"""States after the final norm: every engine gives those of the decoder, also in pieces and beside other sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CONFIGS, spec_of
from helpers import filled_decoder

from sentinel.errors import InputError
from sentinel.infer.opening import make_engine
from sentinel.models.width import Width

TOKENS = np.random.default_rng(3).integers(1, 97, 45).tolist()


def expected(decoder) -> np.ndarray:
    with torch.no_grad():
        return decoder.final_norm(decoder.hidden_states(torch.tensor(TOKENS)[None]))[0].numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_levels_0_to_2_give_the_states_of_the_decoder(name):
    decoder = filled_decoder(spec_of(name))
    wanted = expected(decoder)
    for level in (0, 1, 2):
        engine = make_engine(decoder, level)
        other, logits = engine.open(TOKENS[:7], 2)
        sequence = engine.begin(len(TOKENS))
        found = np.concatenate([engine.states(sequence, TOKENS[:33]), engine.states(sequence, TOKENS[33:])])
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-5 * max(1, np.abs(wanted).max()), level
        token = int(logits.argmax())
        beside, alone = engine.step([other], [token])[0], engine.open([*TOKENS[:7], token], 1)[1]
        assert np.abs(beside - alone).max() < 1e-4 * max(1, np.abs(alone).max())  # what was open goes on
        engine.release()


def test_quantised_states_are_near_and_those_of_a_width_its_own():
    decoder = filled_decoder(spec_of("llama-grouped"))
    engine = make_engine(decoder, 3)
    found = engine.states(engine.begin(45), TOKENS)
    wanted = expected(decoder)
    assert 0 < np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
    spec = decoder.spec
    fp32 = make_engine(decoder, 2)
    width = Width(tuple(1 for _ in spec.layers), tuple(8 for _ in spec.layers))
    fp32.set_width(width)
    decoder.use(width)
    assert np.abs(fp32.states(fp32.begin(45), TOKENS) - expected(decoder)).max() < 1e-4


def test_a_sequence_of_no_token_or_of_too_many_is_refused():
    engine = make_engine(filled_decoder(spec_of("llama-grouped")), 1)
    for room in (0, engine.spec.max_seq_len + 1):
        with pytest.raises(InputError, match="can be read, not one of"):
            engine.begin(room)
