"""Steps that are recorded once and then launched whole: a CUDA graph, so that a token costs one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # runs before a recording, in which libraries choose kernels and allocate work areas


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``step`` as one launch on CUDA; itself on any other device, where PyTorch records nothing.

    It may not wait for the host, and reads and writes tensors that stay where they are. It is run `WARM_UP` times first:
    whoever calls this sets what it changed anew.
    """
    if device.type != "cuda":
        return step
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay


class OnTheWay:
    """Numbers [n] of a device on their way to the host, which waits for them only when it reads them."""

    def __init__(self, values: Tensor) -> None:
        self._ready = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.cpu().clone()

    def read(self) -> list[int]:
        """The numbers, once they are here."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.tolist()
