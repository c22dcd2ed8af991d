"""A student small enough to train a hundred times per second, with everything that makes balancing hard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mokd_det.balancing import (
    DOT,
    Amortized,
    AmortizedValues,
    Balancer,
    ClosedForm,
    ClosedFormTaps,
    FixedWeights,
    GradientShare,
    GradNorm,
    MeanOf,
    Replay,
    StepContext,
    SumNorm,
    TorchJD,
    UncertaintyWeighting,
)

OBJECTIVES = ("distill", "task", "boxes")

RECORDED_RUN = Path(__file__).parents[1] / "data" / "recorded_run"

Batch = tuple[Tensor, Tensor, Tensor]

BALANCERS: dict[str, Callable[[], Balancer]] = {
    "fixed": lambda: FixedWeights({"distill": 4.0, "task": 1.0, "boxes": 0.5}),
    "closed_form": ClosedForm,
    "closed_form_every_2": lambda: ClosedForm(update_every=2),
    "closed_form_bare": lambda: ClosedForm(total=None),
    "closed_form_trunk_lag": lambda: ClosedForm(trunk_only=True, lag=True),
    "closed_form_taps": ClosedFormTaps,
    "closed_form_taps_every_2": lambda: ClosedFormTaps(update_every=2),
    "amortized": Amortized,
    "amortized_adam": lambda: Amortized(pi_optimizer="adam", total=3.0),
    "amortized_every_2": lambda: Amortized(update_every=2, min_losses=0.01),
    "amortized_floor": lambda: Amortized(pi_min=0.1),
    "amortized_bare": lambda: Amortized(total=None, improvement="relative"),
    "amortized_values": AmortizedValues,
    "dot": DOT,
    "mean_of": lambda: MeanOf(RECORDED_RUN),
    "mean_of_logarithms": lambda: MeanOf(RECORDED_RUN, of="logarithms"),
    "replay": lambda: Replay(RECORDED_RUN),
    "sum_norm": lambda: SumNorm(Amortized()),
    "sum_norm_closed_form": lambda: SumNorm(ClosedForm(update_every=2)),
    "gradient_share": lambda: GradientShare(period=4),
    "gradient_share_every_2": lambda: GradientShare(period=4, update_every=2, trunk_only=False),
    "uncertainty": UncertaintyWeighting,
    "gradnorm": GradNorm,
    "gradnorm_every_2": lambda: GradNorm(update_every=2),
    "mgda": lambda: TorchJD("mgda"),
    "pcgrad": lambda: TorchJD("pcgrad"),
    "pcgrad_log_every_2": lambda: TorchJD("pcgrad", log_gradients=True, update_every=2, total=3.0),
    "cagrad": lambda: TorchJD("cagrad"),
    "imtl_g": lambda: TorchJD("imtl_g"),
    "upgrad": lambda: TorchJD("upgrad"),
    "dualproj": lambda: TorchJD("dualproj"),
    "aligned_mtl": lambda: TorchJD("aligned_mtl"),
    "fairgrad": lambda: TorchJD("fairgrad"),
}


class ToyStudent(nn.Module):
    """Backbone (its output is the tap) and three objectives that leave at different depths.

    ``head`` serves the task alone, ``projection`` is private to the distillation, ``idle`` is never used.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 4)
        self.box = nn.Linear(5, 2)
        self.projection = nn.Linear(5, 7, bias=False)
        self.idle = nn.Parameter(torch.zeros(3))
        self.to(dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter is not self.idle:
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
                    )
        self.tapped: Tensor | None = None

    def forward(self, batch: Batch) -> Tensor:
        images, labels, features = batch
        self.tapped = self.backbone(images)
        return torch.stack(
            [
                F.smooth_l1_loss(self.projection(self.tapped), features),
                F.cross_entropy(self.head(self.tapped), labels),
                (self.box(self.tapped.tanh()) - images[:, :2]).abs().mean(),
            ]
        )

    def private_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def shared_parameters(self) -> list[nn.Parameter]:
        private = {id(parameter) for parameter in self.private_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in private]


class ToyForward:
    """What the trainer hands to a balancer, for one micro-batch."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.calls: list[bool] = []

    def __call__(self, *, sync: bool = True) -> Tensor:
        self.calls.append(torch.is_grad_enabled())
        if not isinstance(self.model, DistributedDataParallel):
            return self.model(self.batch)
        if not torch.is_grad_enabled():
            return self.model.module(self.batch)
        with contextlib.nullcontext() if sync else self.model.no_sync():
            return self.model(self.batch)


def toy_batch(seed: int, size: int = 4, dtype: torch.dtype = torch.float64) -> Batch:
    """Images (B, 6), labels (B,), teacher features (B, 7)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (size,), generator=generator)
    features = torch.randn(size, 7, generator=generator, dtype=torch.float64)
    return images.to(dtype), labels, features.to(dtype)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch out of several of equal size."""
    images, labels, features = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels, features


def context_of(student: ToyStudent, iteration: int = 0, loss_scale: float | Tensor = 1.0) -> StepContext:
    return StepContext(
        student.shared_parameters(),
        student.private_parameters(),
        loss_scale,
        iteration,
        lambda: [student.tapped],
    )


class ToyTraining:
    """The part of a trainer that concerns balancers."""

    def __init__(self, balancer: Balancer, student: ToyStudent, model: nn.Module | None = None) -> None:
        self.balancer, self.student = balancer, student
        self.model = student if model is None else model
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
        self.iteration = 0
        balancer.setup(OBJECTIVES)

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        forwards = [ToyForward(self.model, batch) for batch in batches]
        context = context_of(self.student, self.iteration)
        self.optimizer.zero_grad()
        scalars = dict(self.balancer.backward(forwards, context))
        self.optimizer.step()
        scalars.update(self.balancer.after_step(forwards, context))
        self.iteration += 1
        return {name: float(value) for name, value in scalars.items()}

    def parameters(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.student.parameters()).detach().clone()
