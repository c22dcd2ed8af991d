"""Reading device values without stopping the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """A copy to the host that starts now and is waited for only when it is read.

    On CUDA the copy goes to pinned memory on the current stream, so :meth:`read` waits for the work that was
    queued before the copy and for nothing that was queued after it.
    """

    def __init__(self, values: Tensor) -> None:
        values = values.detach()
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = values.clone()

    def read(self) -> Tensor:
        """The values as a CPU tensor, waiting if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host
