"""The sampling kernels of deformable attention, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["HALF_PRECISION", "KERNELS", "Kernel", "register_kernel"]

Kernel = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]

KERNELS: dict[str, Kernel] = {}

HALF_PRECISION: set[str] = set()
"""Names of those that read float16 and bfloat16 values as they are, and add up in float32."""


def register_kernel(name: str, *, half_precision: bool = False) -> Callable[[Kernel], Kernel]:
    """Decorator that makes a sampling kernel available as ``kernel=name``.

    A kernel takes ``value`` (B, S, M, D), the list of (H_l, W_l) with sum H_l·W_l = S, ``locations``
    (B, Q, M, L, P, 2) as (x, y) in units of the level's width and height (0 = left/upper edge of the first cell,
    1 = right/lower edge of the last; outside reads zero) and ``weights`` (B, Q, M, L, P); it returns (B, Q, M·D).
    Locations that are not numbers must show in the output. All are of one float type.

    Args:
        name: unique.
        half_precision: ``value`` may be float16 or bfloat16, locations and weights float32 then; the output is of
            the value's type. Others get float32.
    """

    def add(kernel: Kernel) -> Kernel:
        if name in KERNELS:
            raise ValueError(f"a deformable attention kernel named {name!r} exists already")
        KERNELS[name] = kernel
        if half_precision:
            HALF_PRECISION.add(name)
        return kernel

    return add
