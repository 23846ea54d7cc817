"""The product of a single row in blocks, one per thread, is `torch.nn.functional.linear`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sentinel.models.parts import linear as module
from sentinel.models.parts.linear import linear


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [192, 193, 194, 195, 50_257])  # 50,257: the vocabulary of GPT-2
def test_rows_that_threads_do_not_share_evenly(rows, bias, threads, monkeypatch):
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(rows, 24, generator=generator), torch.randn(1, 1, 24, generator=generator)
    offset = torch.randn(rows, generator=generator) if bias else None
    exact = functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    monkeypatch.setattr(module.functional, "linear", None)  # it is the other way of the two
    with torch.no_grad():
        found = linear(x, weight, offset)
    assert found.shape == (1, 1, rows)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
