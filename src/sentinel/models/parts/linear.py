"""Matrix times row vectors, with both cores busy when there is a single row.

PyTorch's CPU build hands a one-row product to BLAS ``gemv``, which streams the weights with one thread. Cut into one
block of rows per thread and written as a batched product, the same weights are streamed by all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sentinel.errors import InputError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` [..., in] and ``weight`` [out, in], as `torch.nn.functional.linear`.

    A single row on the CPU outside of autograd is computed in blocks of output rows, one per thread; the result differs
    from ``functional.linear`` by rounding only.
    """
    if torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    threads = torch.get_num_threads()
    rows, columns = weight.shape
    one_row = x.numel() == columns > 0 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if not one_row or threads == 1 or rows < 64 * threads:
        return functional.linear(x, weight, bias)
    block = rows // threads
    blocks = weight[: block * threads].view(threads, block, columns)
    y = torch.bmm(x.reshape(1, 1, columns).expand(threads, 1, columns), blocks.transpose(1, 2)).reshape(-1)
    if block * threads < rows:
        y = torch.cat((y, weight[block * threads :] @ x.reshape(columns)))
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], rows)


class Projection(nn.Linear):
    """`torch.nn.Linear` on `linear`, so that a single row is as fast when it is called as a module."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return linear(x, self.weight, self.bias)


def bias_of(projection: nn.Linear) -> Tensor | None:
    """Its bias [out]; torch's types say that there always is one."""
    return projection.bias


def first_outputs(projection: nn.Linear, x: Tensor, rows: int) -> Tensor:
    """The first ``rows`` outputs of ``projection`` [..., rows] for ``x`` [..., in]."""
    if rows == projection.weight.shape[0]:
        return projection(x)  # as a module, so that an adapter or a hook around it takes effect
    require_plain(projection)
    bias = bias_of(projection)
    return linear(x, projection.weight[:rows], None if bias is None else bias[:rows])


def of_first_inputs(projection: nn.Linear, x: Tensor) -> Tensor:
    """Outputs of ``projection`` [..., out] when there are only its first inputs ``x`` [..., columns]."""
    columns = x.shape[-1]
    if columns == projection.weight.shape[1]:
        return projection(x)
    require_plain(projection)
    return linear(x, projection.weight[:, :columns], projection.bias)


def require_plain(projection: nn.Module) -> None:
    """Raise `InputError` where something around the projection would be left out (peft's adapters, accelerate's hooks)."""
    if not isinstance(projection, Projection) or "forward" in vars(projection):
        raise InputError(
            "a width uses parts of the projections, but adapters and offloading need them whole; "
            "set the whole, or save the model at that width and load it again"
        )
