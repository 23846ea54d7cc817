"""Fingerprints of weights."""

from __future__ import annotations

import torch
from conftest import spec_of
from helpers import filled_decoder

from sentinel.models.fingerprint import weights_fingerprint


def test_a_fingerprint_is_of_the_weights_alone():
    one, same = (filled_decoder(spec_of("gpt2")) for _ in range(2))
    assert weights_fingerprint(one) == weights_fingerprint(same)
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-3
    assert weights_fingerprint(one) != weights_fingerprint(same)
