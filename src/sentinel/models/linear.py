"""Matrix times row vectors, with both cores busy when there is a single row.

PyTorch's CPU build hands a one-row product to BLAS ``gemv``, which streams the weights with one thread. Cut into one
block of rows per thread and written as a batched product, the same weights are streamed by all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` [..., in] and ``weight`` [out, in], as `torch.nn.functional.linear`.

    A single row on the CPU outside of autograd is computed in blocks of output rows, one per thread; the result differs
    from ``functional.linear`` by rounding only.
    """
    threads = torch.get_num_threads()
    rows, columns = weight.shape
    one_row = x.numel() == columns > 0 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if not one_row or threads == 1 or rows < 64 * threads:
        return functional.linear(x, weight, bias)
    block = rows // threads
    blocks = weight[: block * threads].unflatten(0, (threads, block))
    y = torch.bmm(x.reshape(1, 1, columns).expand(threads, 1, columns), blocks.transpose(1, 2)).reshape(-1)
    if block * threads < rows:
        y = torch.cat((y, weight[block * threads :] @ x.reshape(columns)))
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], rows)
