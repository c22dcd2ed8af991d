#!/usr/bin/env python
"""Deformable attention by every kernel that works here, against grid_sample, forwards and backwards.

    python benchmarks/deformable_attention.py --clock cpu
    python benchmarks/deformable_attention.py --sizes 800x1333 --queries 300 --dtype bfloat16   # on a GPU

First the sampling alone: values, locations and weights as a ViDT decoder layer has them (points around boxes
anywhere in the image). "kept" is what the forward keeps for the backward beyond its inputs. On CUDA the table has the
peak of the memory allocated during a call, and a line tells the floor: every number that the result depends on read
once and every result written once, at the bandwidth that copying a gigabyte reaches here. Then, on a CPU, the whole
module with its projections, where "auto" may project after it has read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import torch
from memory import kept_bytes
from torch import Tensor

from mokd_det.layers import KERNELS, MultiScaleDeformableAttention
from mokd_det.layers.fused_kernel import corners_of
from mokd_det.layers.kernel_choice import kernel_problem
from mokd_det.layers.kernel_registry import HALF_PRECISION

STRIDES = (8, 16, 32, 64)
BASELINE = "grid_sample"
Case = tuple[list[tuple[int, int]], Tensor, Tensor, Tensor]


def make_case(options: argparse.Namespace, size: tuple[int, int], queries: int) -> Case:
    """Levels, values (B, S, M, D), locations and weights of a decoder layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    cells = sum(height * width for height, width in shapes)
    sampled = (options.batch, queries, options.heads, len(shapes), options.points)
    value = torch.randn(options.batch, cells, options.heads, options.channels, generator=generator)
    centres = torch.rand(options.batch, queries, 1, 1, 1, 2, generator=generator)
    locations = centres + 0.1 * torch.randn(*sampled, 2, generator=generator)
    weights = torch.rand(sampled, generator=generator).flatten(3).softmax(-1).view(sampled)
    value = value.to(options.device, getattr(torch, options.dtype))
    return shapes, value, locations.to(options.device), weights.to(options.device)


def sampling_call(kernel: str, case: Case, backward: bool) -> Callable[[], Tensor]:
    """One pass of a kernel; those that read float32 only get it converted, as in the module."""
    shapes, *inputs = case
    leaves = [tensor.detach().clone().requires_grad_(backward) for tensor in inputs]

    def run() -> Tensor:
        value = leaves[0] if kernel in HALF_PRECISION else leaves[0].float()
        output = KERNELS[kernel](value, shapes, *leaves[1:])
        if backward:
            torch.autograd.grad(output, leaves, torch.ones_like(output))
        return output

    return run


def module_call(kernel: str, options: argparse.Namespace, case: Case, backward: bool) -> Callable[[], Tensor]:
    """One pass of the module with its projections."""
    shapes, value, locations, _ = case
    batch, queries = locations.shape[:2]
    channels = options.heads * options.channels
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(channels, options.heads, len(shapes), options.points, kernel)
    module.requires_grad_(backward)
    query = torch.randn(batch, queries, channels, requires_grad=backward)
    memory = value.detach().float().flatten(2).clone().requires_grad_(backward)
    reference = torch.rand(batch, queries, 1, 4).mul(0.5).expand(-1, -1, len(shapes), -1)
    padding = torch.zeros(batch, memory.shape[1], dtype=torch.bool)

    def run() -> Tensor:
        output: Tensor = module(query, reference, memory, shapes, padding)
        if backward:
            torch.autograd.grad(output, [query, memory, *module.parameters()], torch.ones_like(output))
        return output

    return run


def kept_by(kernel: str, case: Case) -> int:
    """Bytes of storage that a kernel's forward keeps beyond its inputs."""
    shapes, *inputs = case
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = leaves[0] if kernel in HALF_PRECISION else leaves[0].float()
    return kept_bytes(lambda: KERNELS[kernel](value, shapes, *leaves[1:]), leaves)


def floor_bytes(case: Case, backward: bool) -> int:
    """Bytes that cannot but cross the memory bus: cells that are read, once each; everything else likewise."""
    shapes, value, locations, weights = case
    corners = corners_of(value.shape, shapes, locations)
    rows = int(corners.rows[corners.row_shares(weights.flatten(0, 2).flatten(1)) != 0].unique().numel())
    read = rows * value.shape[3] * value.element_size()
    points = locations.nbytes + weights.nbytes
    output = locations.shape[1] * value.shape[0] * value.shape[2] * value.shape[3] * value.element_size()
    forward = read + points + output
    return forward if not backward else forward + (read + points + output) + (value.nbytes + points)


def bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on this GPU."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    times = harness.run({"copy": lambda: target.copy_(source)}, rounds=9, clock="device", progress=False)
    return 2 * source.nbytes / times.seconds("copy").median


def peak(call: Callable[[], Tensor]) -> str:
    """Megabytes allocated above the state before, on CUDA."""
    call()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"


def main() -> None:
    parser = harness.parser_of(__doc__)
    add = parser.add_argument
    on_gpu = torch.cuda.is_available()
    add(
        "--sizes",
        nargs="+",
        type=harness.size,
        default=[(800, 1333), (256, 256)],
        metavar="HxW",
        help="of images",
    )
    add("--queries", nargs="+", type=int, default=[100, 300], metavar="N")
    add("--batch", type=int, default=2, metavar="N", help="images (%(default)s)")
    add("--heads", type=int, default=8, metavar="N", help="(%(default)s)")
    add("--points", type=int, default=4, metavar="N", help="per head and level (%(default)s)")
    add("--channels", type=int, default=32, metavar="N", help="of a head (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32", help="of values")
    add("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    add(
        "--kernels",
        nargs="+",
        choices=sorted(KERNELS),
        metavar="NAME",
        help="beside grid_sample (all that work)",
    )
    options = harness.options_of(parser)
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    wanted = options.kernels or [name for name in sorted(KERNELS) if kernel_problem(name, device) is None]
    kernels = [BASELINE, *(name for name in wanted if name != BASELINE)]
    speed = bandwidth() if options.device == "cuda" else None

    for size in options.sizes:
        for queries in options.queries:
            case = make_case(options, size, queries)
            for backward in (False, True):
                about = {
                    "pass": "forward and backward" if backward else "forward",
                    "image": "x".join(map(str, size)),
                    "queries": queries,
                    **{
                        key: getattr(options, key)
                        for key in ("batch", "heads", "points", "channels", "dtype")
                    },
                    "device": options.device,
                }
                calls = {name: sampling_call(name, case, backward) for name in kernels}
                measured = harness.measure(calls, options, baseline=BASELINE, progress=False)
                columns, further = {}, {}
                if backward:
                    columns["kept, MB"] = {name: f"{kept_by(name, case) / 1e6:.1f}" for name in kernels}
                if speed is not None:
                    columns["peak, MB"] = {name: peak(call) for name, call in calls.items()}
                    further = {"floor_bytes": floor_bytes(case, backward), "bytes_per_second": speed}
                settings = {"what": "sampling", **about}
                measured.report(
                    "deformable_attention",
                    settings=settings,
                    json_file=options.json,
                    columns=columns,
                    further=further,
                )
                if speed is not None:
                    print(
                        f"\nfloor: {1e6 * further['floor_bytes'] / speed:.1f} microseconds for "
                        f"{further['floor_bytes'] / 1e6:.1f} MB at {speed / 1e9:.0f} GB/s"
                    )
                print()
                if options.device == "cpu" and options.dtype == "float32":
                    modules = {
                        name: module_call(name, options, case, backward)
                        for name in (BASELINE, "fused", "auto")
                    }
                    measured = harness.measure(modules, options, baseline=BASELINE, progress=False)
                    settings = {"what": "module", **about}
                    measured.report("deformable_attention", settings=settings, json_file=options.json)
                    print()


if __name__ == "__main__":
    main()
