#!/usr/bin/env python
"""Seconds of an optimiser step of orthonormal projections, by how they are kept orthonormal.

    python benchmarks/projections.py
    python benchmarks/projections.py --shape 256 512 --count 12 --rounds 20
    python benchmarks/projections.py --shape 192 3024 --parametrisation householder --rounds 3 --warmup 0

A step is a forward and a backward of ``--rows`` rows through each of ``--count`` projections IN → OUT, AdamW, and what
keeps P orthonormal: nothing ("linear"), our retraction, the same by Householder reflections, or one of torch's
parametrisations, which work within the forward. The retraction by itself stands below.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import measure, options_of, parser_of
from torch import Tensor, nn

from mokd_det.distillation.cholesky_qr import householder_qr
from mokd_det.distillation.stiefel import StiefelLinear, retract_

MAPS = ("householder", "cayley", "matrix_exp")


class Projections:
    """Some projections of one shape with their optimiser."""

    def __init__(
        self, shape: tuple[int, int], count: int, rows: int, retract: Callable[[list[Tensor]], None] | None
    ) -> None:
        torch.manual_seed(0)
        self.layers: list[nn.Module] = [StiefelLinear(*shape) for _ in range(count)]
        self.retract = retract
        self.prepare(shape, rows)

    def prepare(self, shape: tuple[int, int], rows: int) -> None:
        parameters = [p for layer in self.layers for p in layer.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
        self.rows = torch.randn(rows, shape[0])
        self.target = torch.randn(rows, shape[1])

    def step(self) -> None:
        self.optimizer.zero_grad()
        sum(nn.functional.smooth_l1_loss(layer(self.rows), self.target) for layer in self.layers).backward()
        self.optimizer.step()
        self.put_back()

    def put_back(self) -> None:
        if self.retract is not None:
            self.retract([layer.weight for layer in self.layers])


class Parametrised(Projections):
    """The same through torch's parametrisation."""

    def __init__(self, shape: tuple[int, int], count: int, rows: int, orthogonal_map: str) -> None:
        torch.manual_seed(0)
        self.layers = [
            nn.utils.parametrizations.orthogonal(nn.Linear(*shape, bias=False), orthogonal_map=orthogonal_map)
            for _ in range(count)
        ]
        self.retract = None
        self.prepare(shape, rows)


@torch.no_grad()
def by_householder(weights: list[Tensor]) -> None:
    """The retraction by Householder reflections, batched."""
    for weight, value in zip(weights, householder_qr(torch.stack(weights)), strict=True):
        weight.copy_(value)


def main() -> None:
    parser = parser_of(__doc__, rounds=10, warmup=2)
    add = parser.add_argument
    add("--shape", type=int, nargs=2, default=(256, 512), metavar=("IN", "OUT"))
    add("--count", type=int, default=1, help="projections (%(default)s)")
    add("--rows", type=int, default=16, help="rows through each (%(default)s)")
    add(
        "--parametrisation",
        nargs="*",
        choices=MAPS,
        default=[],
        help="torch's, beside ours; householder is its default for a matrix that is not square",
    )
    args = options_of(parser)
    shape = (args.shape[0], args.shape[1])
    if shape[0] > shape[1]:
        parser.error("IN must be at most OUT")
    ours = Projections(shape, args.count, args.rows, retract_)
    householder = Projections(shape, args.count, args.rows, by_householder)
    calls: dict[str, Callable[[], object]] = {
        "linear": Projections(shape, args.count, args.rows, None).step,
        "ours": ours.step,
        "Householder retraction": householder.step,
        "only our retraction": ours.put_back,
        "only Householder's": householder.put_back,
    }
    for name in args.parametrisation:
        calls[f"torch {name}"] = Parametrised(shape, args.count, args.rows, name).step
    measured = measure(calls, args, baseline="ours")
    errors = [float(layer.orthogonality_error()) for layer in ours.layers if isinstance(layer, StiefelLinear)]
    measured.report(
        "projections",
        settings={"shape": f"{shape[0]} -> {shape[1]}", "count": args.count, "rows": args.rows},
        json_file=args.json,
        further={"orthogonality error": max(errors)},
    )
    print(f"\nlargest |PᵀP - I| of ours afterwards: {max(errors):.1e}")


if __name__ == "__main__":
    main()
