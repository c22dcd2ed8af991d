"""The two halves of a comparison's replicates: the processor's whole instruction set, and a limited one.

Rounding differs between them, and a training amplifies it: what holds in one half only may not hold on the next
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

__all__ = ["Half", "half_of"]

# PyTorch's own kernels, oneDNN and MKL each have their own switch.
_LIMITS = {
    "AVX512": ("AVX2", ("avx2", "AVX2", "AVX2")),
    "AVX2": ("DEFAULT", ("default", "SSE41", "SSE4_2")),
}
_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


@dataclass(frozen=True)
class Half:
    """What a replicate's processes run with.

    Attributes:
        name: "full" or "limited".
        capability: as PyTorch names the instruction set, or the GPU.
        environment: variables that limit it.
    """

    name: str
    capability: str
    environment: Mapping[str, str] = field(default_factory=dict)


def half_of(replicate: int) -> Half:
    """The half of a replicate: odd ones are limited, unless a GPU computes or there is nothing to limit."""
    if torch.cuda.is_available():
        return Half("full", torch.cuda.get_device_name())
    capability = str(torch.backends.cpu.get_cpu_capability())
    if replicate % 2 == 0 or capability not in _LIMITS:
        return Half("full", capability)
    limited, values = _LIMITS[capability]
    return Half("limited", limited, dict(zip(_VARIABLES, values)))
