"""How much memory a forward pass takes at its peak, beyond the model itself."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mokd_det.errors import ConfigError, MoKDError
from mokd_det.evaluation.latency import autocast_to

__all__ = ["Build", "PeakMemory", "cpu_peak_memory", "cuda_peak_memory"]

Build = Callable[[], tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]]
"""Makes a model in eval mode on the CPU, small positional arguments for a first pass, and those that count.

Picklable: a function of a module, or a ``functools.partial`` of one."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Memory of a forward pass: the peak over what was in use before it, in 10⁶ bytes, and how it was found."""

    megabytes: float
    method: str


def cuda_peak_memory(
    model: nn.Module, inputs: tuple[Any, ...], device: torch.device, precision: str = "fp32"
) -> PeakMemory:
    """Peak of the tensors that the allocator hands out during one pass ``model(*inputs)`` on a GPU, the model's own not
    counted; ``precision`` as of :func:`mokd_det.evaluation.latency.autocast_to`."""
    with torch.inference_mode(), autocast_to(precision, device):
        model(*inputs)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(*inputs)
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return PeakMemory(peak / 1e6, "CUDA allocator, tensors of one pass")


def cpu_peak_memory(build: Build, precision: str = "fp32") -> PeakMemory:
    """Growth of the resident set during one pass, in a process of its own.

    The fresh process builds the model, runs a small pass (which loads libraries and their caches), returns free memory
    to the system, resets the kernel's high-water mark and runs the pass that counts. Where the mark cannot be reset,
    the one since the process began is used, which is an underestimate if building took more; ``method`` says which.

    Raises:
        ConfigError: the process ended without a result, for want of memory for instance.
        MoKDError: what ``build`` raised.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(build, precision, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise ConfigError(
            f"peak memory: the measuring process ended with status {process.exitcode} and no result (a negative one "
            "is a signal; -9 often means that memory ran out): take a smaller batch or image"
        ) from None
    process.join()
    if isinstance(result, MoKDError):
        raise result
    return result


def _measure(build: Build, precision: str, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    try:
        model, small, inputs = build()
        with torch.inference_mode(), autocast_to(precision, torch.device("cpu")):
            model(*small)
            # Give the system back what the C library keeps for later, if it is glibc.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            before = _memory("VmRSS")
            method = "resident set of a fresh process"
            try:
                _RESET.write_text("5")
            except OSError:
                method += ", high-water mark since its start"
            model(*inputs)
        peak = _memory("VmHWM")
    except MoKDError as error:
        sender.send(error)
        return
    sender.send(PeakMemory(max(peak - before, 0) / 1e6, method))


def _memory(entry: str) -> int:
    """Bytes of an entry of the process's status; where there is none, the most that it has had."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
