"""Deformable attention by packages that may be there or not, in the form of :func:`register_kernel`.

Each is a kernel under its name where its package is installed, and imported at its first call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .kernel_registry import Kernel, register_kernel
from .level_table import level_table

__all__ = ["PACKAGES", "torch_ms_deform_attn_kernel", "triton_kernel"]

PACKAGES: Mapping[str, str] = {"triton": "triton", "torch_ms_deform_attn": "torch-ms-deform-attn"}
"""Names of kernels, which are those of the modules that they import, and what to install for them."""


def triton_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Our own kernels for CUDA (``triton_kernel.py``); a ConfigError for tensors that are elsewhere."""
    from . import triton_kernel as kernels

    if value.device.type != "cuda" and not kernels.INTERPRETED:
        raise ConfigError(
            f'deformable attention kernel "triton" needs tensors on CUDA, not on {value.device}; "auto" runs on every '
            "device"
        )
    return kernels.sample(value, shapes, locations, weights)


def torch_ms_deform_attn_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable DETR's compiled operator, as torch-ms-deform-attn packages it."""
    from torch_ms_deform_attn import ms_deform_attn

    if not weights.numel():
        # It refuses tensors without elements on CUDA.
        nothing = value.sum() + locations.sum() + weights.sum()
        return nothing * value.new_zeros(*weights.shape[:2], value.shape[2] * value.shape[3])
    levels = level_table(shapes, value.device, torch.int64)
    places = levels[:, :2].contiguous(), levels[:, 2].contiguous()
    output: Tensor = ms_deform_attn(value.contiguous(), *places, locations.contiguous(), weights.contiguous())
    return output


def _register(name: str, kernel: Kernel, *, half_precision: bool = False) -> None:
    if importlib.util.find_spec(name) is not None:
        register_kernel(name, half_precision=half_precision)(kernel)


_register("triton", triton_kernel, half_precision=True)
_register("torch_ms_deform_attn", torch_ms_deform_attn_kernel)
