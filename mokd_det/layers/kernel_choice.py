"""Which kernel deformable attention samples with: the one asked for, or the fastest that works on the device."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .kernel_registry import KERNELS
from .optional_kernels import PACKAGES

__all__ = ["AUTO", "check_kernel", "choose_kernel", "kernel_problem"]

logger = logging.getLogger(__name__)

AUTO = "auto"


def check_kernel(name: str) -> None:
    """Raise a ConfigError unless a module can be built with the kernel: it exists, and its package is installed."""
    if name == AUTO or name in KERNELS:
        return
    if name in PACKAGES:
        raise ConfigError(
            f"deformable attention kernel {name!r} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}"
        )
    raise ConfigError(
        f"unknown deformable attention kernel {name!r}; there are {', '.join((AUTO, *sorted(KERNELS)))}"
    )


def choose_kernel(device: torch.device) -> str:
    """The name behind ``"auto"``.

    Graphs (traces, exports, ``torch.compile``) get ``"grid_sample"``, which is one operation there. CPUs get
    ``"fused"``. CUDA gets ``"triton"`` where it runs and is right, which is tried once per device; otherwise the next
    best, and one line of the log says why.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return "grid_sample"
    if device.type == "cpu":
        return "fused"
    if device.type == "cuda":
        return _choose_on_cuda(device, torch.are_deterministic_algorithms_enabled())
    return "grid_sample"


@functools.cache
def _choose_on_cuda(device: torch.device, deterministic: bool) -> str:
    # The compiled kernel adds in any order, and grid_sample has no deterministic backward.
    last = "fused" if deterministic else "grid_sample"
    problems = []
    for name in ("triton",) if deterministic else ("triton", "torch_ms_deform_attn"):
        problem = kernel_problem(name, device)
        if problem is None:
            last = name
            break
        problems.append(f"{name}: {problem}")
    if problems:
        logger.warning("Deformable attention on %s samples by %r (%s)", device, last, "; ".join(problems))
    return last


@functools.cache
def kernel_problem(name: str, device: torch.device) -> str | None:
    """Why a kernel cannot be used on a device, found by running it forwards and backwards; None: it can."""
    if name not in KERNELS:
        return f"the package {PACKAGES[name]} is not installed"
    try:
        found = _trial(name, device)
    except Exception as error:  # compilers and drivers fail in every way there is
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    expected = _trial("grid_sample", torch.device("cpu"))
    for one, other in zip(found, expected):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
            return f"wrong by {float((one - other).abs().max()):.3g} in a trial"
    return None


def _trial(name: str, device: torch.device) -> list[Tensor]:
    """Output and gradients of a small case, on the CPU; draws no random numbers."""
    shapes = [(3, 4), (2, 2)]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        value, locations, weights = (torch.arange(n, dtype=torch.float32) for n in (320, 144, 72))
        value = value.mul_(0.7).sin_().view(2, 16, 2, 5)
        locations = locations.mul_(1.3).cos_().mul_(0.7).add_(0.5).view(2, 3, 2, 2, 3, 2)
        weights = weights.mul_(0.9).sin_().view(2, 3, 2, 2, 3)
        inputs = [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]
        output = KERNELS[name](inputs[0], shapes, inputs[1], inputs[2])
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        return [tensor.detach().cpu() for tensor in (output, *gradients)]
