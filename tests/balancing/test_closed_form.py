from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mokd_det.balancing import ClosedForm, ClosedFormTaps, StepContext, min_norm_weights
from mokd_det.balancing.objective_gradients import ObjectiveGradients
from mokd_det.errors import ConfigError
from tests.balancing.toy import OBJECTIVES, Batch, ToyForward, ToyStudent, context_of, toy_batch


def log_gradients(student: ToyStudent, batch: Batch, parameters: list[nn.Parameter]) -> Tensor:
    """(K, n): ∇log L_i by autograd, one at a time."""
    losses = student(batch)
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
        rows.append(torch.cat(flat) / (loss.detach() + 1e-8))
    return torch.stack(rows)


def gradient_of(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    )


class LinearForward:
    """L_i = c_i + ⟨g_i, θ⟩ at θ = 0: gradients and values are what a test wants them to be."""

    def __init__(self, parameter: nn.Parameter, values: list[float], gradients: list[list[float]]) -> None:
        self.parameter = parameter
        self.values = torch.tensor(values, dtype=torch.float64)
        self.gradients = torch.tensor(gradients, dtype=torch.float64)

    def __call__(self, *, sync: bool = True) -> Tensor:
        return self.values + self.gradients @ self.parameter


def linear_step(
    balancer: ClosedForm, values: list[float], gradients: list[list[float]]
) -> tuple[np.ndarray, dict[str, float]]:
    parameter = nn.Parameter(torch.zeros(len(gradients[0]), dtype=torch.float64))
    forwards, context = [LinearForward(parameter, values, gradients)], StepContext([parameter])
    balancer.setup([f"o{index}" for index in range(len(values))])
    scalars = balancer.backward(forwards, context)
    return parameter.grad.numpy(), {name: float(value) for name, value in scalars.items()}


class TestStep:
    def test_is_the_min_norm_point_of_the_log_gradients(self) -> None:
        student, batch = ToyStudent(), toy_batch(0)
        shared = student.shared_parameters()
        rows = log_gradients(student, batch, shared)
        pi = min_norm_weights(rows @ rows.T)
        balancer = ClosedForm(total=None)
        balancer.setup(OBJECTIVES)
        scalars = balancer.backward([ToyForward(student, batch)], context_of(student))
        torch.testing.assert_close(gradient_of(shared), pi @ rows, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            torch.stack([scalars[f"pi/{name}"] for name in OBJECTIVES]), pi, rtol=0, atol=1e-10
        )
        direction = gradient_of(shared)
        assert (rows @ direction >= direction @ direction - 1e-9).all()

    def test_private_parameters_get_the_weighted_gradient_but_do_not_count(self) -> None:
        student, batch = ToyStudent(), toy_batch(0)
        private = student.private_parameters()
        rows = log_gradients(student, batch, private)
        balancer = ClosedForm(total=None)
        balancer.setup(OBJECTIVES)
        scalars = balancer.backward([ToyForward(student, batch)], context_of(student))
        pi = torch.stack([scalars[f"pi/{name}"] for name in OBJECTIVES])
        torch.testing.assert_close(gradient_of(private), pi @ rows, rtol=1e-9, atol=1e-12)
        everything = log_gradients(student, batch, [*student.shared_parameters(), *private])
        assert not torch.allclose(min_norm_weights(everything @ everything.T), pi, atol=1e-3)

    def test_rescaled_step_is_a_convex_combination_of_raw_gradients(self) -> None:
        gradient, scalars = linear_step(ClosedForm(), [2.0, 25.0], [[1.0, 0.0], [0.0, 5.0]])
        raw = np.array([scalars["raw_weight/o0"], scalars["raw_weight/o1"]])
        assert raw.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(gradient, raw @ np.array([[1.0, 0.0], [0.0, 5.0]]), rtol=1e-12)
        bare, bare_scalars = linear_step(ClosedForm(total=None), [2.0, 25.0], [[1.0, 0.0], [0.0, 5.0]])
        assert bare_scalars["pi/o0"] == scalars["pi/o0"]
        np.testing.assert_allclose(
            bare / np.linalg.norm(bare), gradient / np.linalg.norm(gradient), rtol=1e-12
        )

    def test_logs_conflict_and_dominance_of_the_log_gradients(self) -> None:
        _, scalars = linear_step(ClosedForm(eps=1e-30), [2.0, 4.0], [[2.0, 0.0], [-4.0, 4.0]])
        assert scalars["log_inner_product/o0_o1"] == pytest.approx(-1)
        assert scalars["cosine/o0_o1"] == pytest.approx(-(0.5**0.5))
        assert scalars["log_norm_ratio/o0_o1"] == pytest.approx(0.5**0.5)

    def test_parameters_without_gradient_stay_without(self) -> None:
        """Zeros would make an optimiser decay them and pretend they were trained."""
        student = ToyStudent()
        balancer = ClosedForm()
        balancer.setup(OBJECTIVES)
        balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
        assert student.idle.grad is None
        assert all(p.grad is not None for n, p in student.named_parameters() if n != "idle")

    def test_frozen_parameters_are_left_alone(self) -> None:
        student = ToyStudent()
        student.head.bias.requires_grad_(False)
        balancer = ClosedForm()
        balancer.setup(OBJECTIVES)
        balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
        assert student.head.bias.grad is None and student.head.weight.grad is not None


class TestDegenerate:
    @pytest.mark.parametrize("vanished", [0, 1])
    def test_an_objective_without_gradient_does_not_stop_the_others(self, vanished: int) -> None:
        gradients = [[1.0, 2.0], [1.0, 2.0]]
        gradients[vanished] = [0.0, 0.0]
        gradient, scalars = linear_step(ClosedForm(total=None), [2.0, 2.0], gradients)
        assert scalars[f"pi/o{vanished}"] == 0 and scalars[f"pi/o{1 - vanished}"] == 1
        np.testing.assert_allclose(gradient, [0.5, 1.0], rtol=1e-6)

    def test_a_loss_of_zero_is_legal(self) -> None:
        gradient, scalars = linear_step(ClosedForm(), [0.0, 2.0], [[0.0, 0.0], [1.0, 0.0]])
        np.testing.assert_allclose(gradient, [1.0, 0.0], rtol=1e-12)
        assert np.isfinite(list(scalars.values())).all()

    def test_three_objectives_one_vanished(self) -> None:
        _, scalars = linear_step(ClosedForm(eps=1e-30), [1.0, 1.0, 1.0], [[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
        np.testing.assert_allclose([scalars[f"pi/o{i}"] for i in range(3)], [0, 0.2, 0.8], atol=1e-12)

    @pytest.mark.parametrize("total", [None, 1.0])
    def test_opposite_log_gradients_give_no_step(self, total: float | None) -> None:
        gradient, scalars = linear_step(
            ClosedForm(total=total, eps=1e-30), [2.0, 6.0], [[1.0, 2.0], [-3.0, -6.0]]
        )
        np.testing.assert_allclose(gradient, [0.0, 0.0], atol=1e-12)
        assert scalars["pi/o0"] == pytest.approx(0.5)

    def test_equal_gradients(self) -> None:
        gradient, scalars = linear_step(ClosedForm(total=None), [1.0, 1.0], [[1.0, 2.0], [1.0, 2.0]])
        assert scalars["pi/o0"] == 0.5
        np.testing.assert_allclose(gradient, [1.0, 2.0], rtol=1e-7)

    def test_single_objective(self) -> None:
        gradient, scalars = linear_step(ClosedForm(), [3.0], [[1.0, 2.0]])
        np.testing.assert_allclose(gradient, [1.0, 2.0], rtol=1e-12)
        assert scalars == {"pi/o0": 1.0, "raw_weight/o0": 1.0}

    @pytest.mark.parametrize("count", [2, 3])
    def test_overflowed_gradients_reach_the_gradscaler_and_not_the_state(self, count: int) -> None:
        balancer = ClosedForm(update_every=5)
        gradients = [[float(i == j) for j in range(count)] for i in range(count)]
        gradients[0][0] = float("inf")
        parameter = nn.Parameter(torch.zeros(count, dtype=torch.float64))
        forwards, context = [LinearForward(parameter, [1.0] * count, gradients)], StepContext([parameter])
        balancer.setup([f"o{index}" for index in range(count)])
        balancer.backward(forwards, context)
        assert not parameter.grad.isfinite().all()
        balancer.after_step(forwards, context)
        assert torch.equal(
            balancer.state_dict()["weights"], torch.full((count,), 1 / count, dtype=torch.float64)
        )

    def test_too_many_objectives(self) -> None:
        with pytest.raises(ConfigError, match="solves at most 8 objectives, got 9"):
            ClosedForm().setup([str(index) for index in range(9)])


class LiveStorages(TorchDispatchMode):
    """Largest number of storages of at least ``size`` bytes that are alive at the same time."""

    def __init__(self, size: int, apart_from: Sequence[Tensor]) -> None:
        super().__init__()
        self.size, self.peak = size, 0
        self.known = [StorageWeakRef(tensor.untyped_storage()).cdata for tensor in apart_from]
        self.seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self.known:
                    self.seen[reference.cdata] = reference
        self.seen = {key: reference for key, reference in self.seen.items() if not reference.expired()}
        self.peak = max(self.peak, len(self.seen))
        return result


class TestMemory:
    @pytest.mark.parametrize(("count", "micro_batches"), [(2, 1), (3, 1), (2, 3)])
    def test_never_more_than_k_gradients(self, count: int, micro_batches: int) -> None:
        """Counted in gradients of single layers; one more may be on its way into the sum of micro-batches."""
        layers, width = 3, 2048
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

        def forward(*, sync: bool = True) -> Tensor:
            return (model(torch.ones(1, width))[0, :count] ** 2) + 1

        balancer = ClosedForm()
        balancer.setup([str(index) for index in range(count)])
        with LiveStorages(width * width * 4, list(model.parameters())) as live:
            balancer.backward([forward] * micro_batches, StepContext(list(model.parameters())))
            during = live.peak
            live.peak = 0
            torch.zeros(1)
            held = live.peak
        in_transit = 0 if micro_batches == 1 else 1
        assert during <= count * layers + in_transit
        assert held == layers, "after backward() only .grad is left"


class TestGram:
    @pytest.mark.parametrize("loss_scale", [1.0, 1024.0, torch.tensor(65536.0)])
    def test_is_free_of_the_loss_scale_and_of_buckets(
        self, loss_scale: float | Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mokd_det.balancing.objective_gradients._BUCKET", 20)
        monkeypatch.setattr("mokd_det.balancing.objective_gradients._WIDE", 7)
        student, batch = ToyStudent(), toy_batch(3)
        rows = log_gradients(student, batch, student.shared_parameters()) * (student(batch) + 1e-8)[:, None]
        gradients = ObjectiveGradients(context_of(student, loss_scale=loss_scale))
        gradients.collect([ToyForward(student, batch)])
        torch.testing.assert_close(gradients.gram(), (rows @ rows.T).detach(), rtol=1e-12, atol=1e-14)

    def test_mixed_parameter_types(self) -> None:
        low, high = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(*, sync: bool = True) -> Tensor:
            return torch.stack([low.double().sum() + high.sum(), 2 * high[0] + low[0].double()])

        gradients = ObjectiveGradients(StepContext([low, high]))
        gradients.collect([forward])
        assert gradients.gram().tolist() == [[5.0, 3.0], [3.0, 5.0]]
        gradients.release(torch.tensor([1.0, 0.5], dtype=torch.float64))
        assert low.grad.tolist() == [1.5, 1.0, 1.0] and high.grad.tolist() == [2.0, 1.0]
        assert low.grad.dtype == torch.float32


class TestReuse:
    def test_update_every_takes_one_backward_in_between(self) -> None:
        balancer = ClosedForm(update_every=2)
        student = ToyStudent()
        balancer.setup(OBJECTIVES)
        weights, solved = [], []
        for step in range(4):
            context = context_of(student, step)
            forwards = [ToyForward(student, toy_batch(step))]
            scalars = balancer.backward(forwards, context)
            balancer.after_step(forwards, context)
            weights.append([float(scalars[f"pi/{name}"]) for name in OBJECTIVES])
            solved.append("cosine/distill_task" in scalars)
        assert solved == [True, False, True, False]
        assert weights[1] == weights[0] != weights[2] == weights[3]

    def test_the_step_in_between_uses_its_own_losses(self) -> None:
        balancer = ClosedForm(update_every=2)
        student = ToyStudent()
        balancer.setup(OBJECTIVES)
        first = [ToyForward(student, toy_batch(0))]
        balancer.backward(first, context_of(student, 0))
        balancer.after_step(first, context_of(student, 0))
        pi = balancer.state_dict()["weights"]
        student.zero_grad()
        rows = log_gradients(student, toy_batch(1), student.shared_parameters())
        shifted = student(toy_batch(1)).detach() + 1e-8
        balancer.backward([ToyForward(student, toy_batch(1))], context_of(student, 1))
        expected = (pi @ rows) / (pi / shifted).sum()
        torch.testing.assert_close(gradient_of(student.shared_parameters()), expected, rtol=1e-9, atol=1e-12)

    def test_a_refused_first_step_is_solved_again(self) -> None:
        balancer = ClosedForm(update_every=10)
        student = ToyStudent()
        balancer.setup(OBJECTIVES)
        balancer.backward([ToyForward(student, toy_batch(0))], context_of(student, 0))
        scalars = balancer.backward([ToyForward(student, toy_batch(0))], context_of(student, 1))
        assert "cosine/distill_task" in scalars


class TestTaps:
    def test_weights_come_from_the_tap(self) -> None:
        student, batch = ToyStudent(), toy_batch(0)
        losses = student(batch)
        rows = torch.stack(
            [
                torch.autograd.grad(loss.log(), student.tapped, retain_graph=True)[0].flatten()
                for loss in losses
            ]
        )
        pi = min_norm_weights(rows @ rows.T)
        balancer = ClosedFormTaps(eps=1e-30, total=None)
        balancer.setup(OBJECTIVES)
        scalars = balancer.backward([ToyForward(student, batch)], context_of(student))
        torch.testing.assert_close(
            torch.stack([scalars[f"pi/{name}"] for name in OBJECTIVES]), pi, rtol=0, atol=1e-10
        )
        expected = pi @ log_gradients(student, batch, student.shared_parameters())
        torch.testing.assert_close(gradient_of(student.shared_parameters()), expected, rtol=1e-6, atol=1e-9)

    def test_is_not_the_exact_solution(self) -> None:
        student, batch = ToyStudent(), toy_batch(0)
        found = []
        for balancer in (ClosedForm(), ClosedFormTaps()):
            balancer.setup(OBJECTIVES)
            scalars = balancer.backward([ToyForward(student, batch)], context_of(student))
            found.append(float(scalars["pi/distill"]))
        assert abs(found[0] - found[1]) > 1e-3

    def test_one_forward_suffices_for_one_micro_batch(self) -> None:
        student = ToyStudent()
        balancer = ClosedFormTaps()
        balancer.setup(OBJECTIVES)
        forward = ToyForward(student, toy_batch(0))
        balancer.backward([forward], context_of(student))
        assert forward.calls == [True]

    def test_an_objective_that_bypasses_a_tap(self) -> None:
        parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        tapped: list[Tensor] = []

        def forward(*, sync: bool = True) -> Tensor:
            tapped[:] = [parameter * 2, parameter * 3]
            return torch.stack([tapped[0].sum(), tapped[1].sum()])

        balancer = ClosedFormTaps()
        balancer.setup(["a", "b"])
        scalars = balancer.backward([forward], StepContext([parameter], taps=lambda: tapped))
        assert float(scalars["cosine/a_b"]) == 0
        assert parameter.grad is not None

    @pytest.mark.parametrize("taps", [[], [torch.zeros(3)]])
    def test_a_model_without_taps_is_refused(self, taps: list[Tensor]) -> None:
        student = ToyStudent()
        balancer = ClosedFormTaps()
        balancer.setup(OBJECTIVES)
        context = StepContext(student.shared_parameters(), taps=lambda: taps)
        with pytest.raises(ConfigError, match="ClosedFormTaps needs the student's taps"):
            balancer.backward([ToyForward(student, toy_batch(0))], context)
