from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torchjd.aggregation
from torch import Tensor, nn

from mokd_det.balancing import TORCHJD_METHODS, ClosedForm, StepContext, TorchJD
from mokd_det.errors import ConfigError
from tests.balancing.toy import OBJECTIVES, ToyForward, ToyStudent, context_of, toy_batch

AGGREGATORS = {
    "aligned_mtl": torchjd.aggregation.AlignedMTL(),
    "cagrad": torchjd.aggregation.CAGrad(c=0.5),
    "dualproj": torchjd.aggregation.DualProj(),
    "fairgrad": torchjd.aggregation.FairGrad(alpha=1.0),
    "imtl_g": torchjd.aggregation.IMTLG(),
    "krum": torchjd.aggregation.Krum(n_byzantine=0),
    "mgda": torchjd.aggregation.MGDA(),
    "upgrad": torchjd.aggregation.UPGrad(),
}


def step_of(balancer: TorchJD | ClosedForm, gradients: Tensor) -> tuple[Tensor, np.ndarray]:
    """Update and weights for given raw gradients (K, n) of losses that are 1."""
    parameter = nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    names = [str(index) for index in range(len(gradients))]
    balancer.setup(names)
    scalars = balancer.backward(
        [lambda *, sync=True: 1 + gradients @ parameter], StepContext([parameter], iteration=3)
    )
    return parameter.grad, np.array([float(scalars[f"pi/{name}"]) for name in names])


def random_gradients(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", AGGREGATORS)
def test_update_is_torchjds_aggregation(method: str) -> None:
    gradients = random_gradients()
    update, _ = step_of(TorchJD(method), gradients)
    torch.testing.assert_close(update, AGGREGATORS[method](gradients), rtol=1e-6, atol=1e-8)


def test_every_method_but_the_random_one_is_compared() -> None:
    assert set(TORCHJD_METHODS) == {*AGGREGATORS, "pcgrad"}


def test_pcgrad_of_two() -> None:
    """w_1 = 1 − min(0, g12) / g11, w_2 = 1 − min(0, g12) / g22."""
    _, weights = step_of(TorchJD("pcgrad"), torch.tensor([[1.0, 0.0], [-2.0, 1.0]], dtype=torch.float64))
    np.testing.assert_allclose(weights, [1 + 2 / 1, 1 + 2 / 5], rtol=1e-9)


def test_imtl_g_of_two_bisects_the_angle() -> None:
    _, weights = step_of(TorchJD("imtl_g"), torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    np.testing.assert_allclose(weights, [0.25, 0.75], rtol=1e-6)


def test_mgda_of_two_log_gradients_is_the_closed_form() -> None:
    gradients = random_gradients(2)
    mgda, weights = step_of(TorchJD("mgda", log_gradients=True), gradients)
    closed, exact = step_of(ClosedForm(total=None), gradients)
    np.testing.assert_allclose(weights, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(mgda, closed, rtol=1e-9, atol=1e-12)


def test_random_orders_depend_on_the_iteration_alone() -> None:
    gradients = random_gradients(3, seed=5)
    gradients[1] = -gradients[0] + 0.1 * gradients[1]
    gradients[2] = -gradients[0] - gradients[1] + 0.1 * gradients[2]
    gram = gradients @ gradients.T

    def weights(seed: int, iteration: int) -> tuple[float, ...]:
        return tuple(
            TorchJD("pcgrad", seed=seed).solve(gram, gram[0], StepContext([], iteration=iteration)).tolist()
        )

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = weights(0, 7)
    assert torch.equal(torch.get_rng_state(), state), "the training's own random numbers are untouched"
    torch.manual_seed(99)
    assert weights(0, 7) == first
    assert len({weights(0, iteration) for iteration in range(20)}) > 1
    assert len({weights(seed, 0) for seed in range(20)}) > 1


def test_log_gradients_need_positive_losses() -> None:
    assert TorchJD("mgda", log_gradients=True).requires_positive
    assert not TorchJD("mgda").requires_positive


def test_total_normalises_the_raw_weights() -> None:
    student = ToyStudent()
    balancer = TorchJD("pcgrad", log_gradients=True, total=3.0)
    balancer.setup(OBJECTIVES)
    scalars = balancer.backward([ToyForward(student, toy_batch(0))], context_of(student))
    assert sum(float(scalars[f"raw_weight/{name}"]) for name in OBJECTIVES) == pytest.approx(3)


class TestErrors:
    def test_unknown_method_lists_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"method must be one of aligned_mtl, cagrad, .*, not 'mgad'"):
            TorchJD("mgad")

    def test_unknown_argument(self) -> None:
        with pytest.raises(ConfigError, match=r"'mgda' does not take \{'c': 1\}"):
            TorchJD("mgda", c=1)

    def test_argument_out_of_range(self) -> None:
        with pytest.raises(ConfigError, match=r"'cagrad' does not take .*non-negative"):
            TorchJD("cagrad", c=-1.0)

    def test_torchjd_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchjd", None)
        with pytest.raises(ConfigError, match="'mgda' needs the package torchjd: pip install torchjd"):
            TorchJD("mgda")

    def test_what_a_method_needs_besides_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(**arguments: object) -> None:
            raise ImportError('Install them with: pip install "torchjd[cagrad]"')

        monkeypatch.setattr(torchjd.aggregation, "CAGradWeighting", refuse)
        with pytest.raises(ConfigError, match=r"'cagrad' cannot be used here: .*torchjd\[cagrad\]"):
            TorchJD("cagrad")

    def test_torchjd_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(torchjd.aggregation, "FairGradWeighting")
        with pytest.raises(ConfigError, match=r"'fairgrad' cannot be used here: .*FairGradWeighting"):
            TorchJD("fairgrad")
