"""The peak of this process's memory, which it can set back (Linux), and what a forward keeps for its backward."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["apart", "kept_bytes", "reset_peak", "resident_peak"]


def apart(work: Callable[..., Any], *arguments: Any, start: str = "spawn") -> Any:
    """What a function returns in a process of its own, whose memory nothing else has touched; "fork" imports nothing
    anew, but may hang where this process has threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(start)) as pool:
        return pool.submit(work, *arguments).result()


def reset_peak() -> None:
    """Set the high-water mark back to the present size. getrusage() knows none of it: it remembers the parent's."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Bytes, the high-water mark of this process's resident set."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def kept_bytes(forward: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that a forward keeps for its backward pass, each once, without those of ``known``."""
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    # Kept alive, so that no storage takes the address of one that was counted.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor.detach()
        # Not the tensor itself: a node that keeps its own output is a cycle that is never freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total
