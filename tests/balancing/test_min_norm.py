from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import acos, cos, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchjd.aggregation import MGDAWeighting

from mokd_det.balancing.min_norm import min_norm_weights, min_norm_weights_of_live


def weights_of(gradients: np.ndarray) -> np.ndarray:
    return min_norm_weights(torch.from_numpy(gradients @ gradients.T)).numpy()


# The same examples on every machine and at every run.
repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=100)

# Gradients of very different size, parallel, opposite, equal or zero: not only what random numbers give.
sizes = st.sampled_from([1e-3, 0.1, 1.0, 3.0, 1e3])
entries = st.one_of(st.floats(-1, 1, allow_subnormal=False), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))


@st.composite
def gradient_rows(draw: st.DrawFn, count: int | None = None, sizes: st.SearchStrategy = sizes) -> np.ndarray:
    """(K, n) float64 with an awkward relation between some rows."""
    rows = count or draw(st.integers(2, 4))
    columns = draw(st.integers(1, 5))
    matrix = np.array([[draw(entries) for _ in range(columns)] for _ in range(rows)]).round(6)
    matrix *= np.array([draw(sizes) for _ in range(rows)])[:, None]
    relation = draw(st.sampled_from(["free", "equal", "parallel", "opposite", "zero", "sum"]))
    if relation == "equal":
        matrix[1] = matrix[0]
    elif relation == "parallel":
        matrix[1] = 3 * matrix[0]
    elif relation == "opposite":
        matrix[1] = -2 * matrix[0]
    elif relation == "zero":
        matrix[1] = 0
    elif relation == "sum":
        matrix[-1] = matrix[:-1].sum(0) / 2
    return matrix


def solve_exactly(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction] | None:
    """Gauss elimination; None if singular."""
    system = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(len(system)):
        pivot = next((row for row in range(column, len(system)) if system[row][column]), None)
        if pivot is None:
            return None
        system[column], system[pivot] = system[pivot], system[column]
        system[column] = [value / system[column][column] for value in system[column]]
        for row in range(len(system)):
            if row != column:
                factor = system[row][column]
                system[row] = [a - factor * b for a, b in zip(system[row], system[column], strict=True)]
    return [row[-1] for row in system]


def brute_force(gradients: np.ndarray) -> float:
    """Least ‖Σ π_i g_i‖² by rational arithmetic: the best feasible stationary point of every support."""
    rows = [[Fraction(float(value)) for value in row] for row in gradients]
    gram = [[sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0)) for b in rows] for a in rows]
    best: Fraction | None = None
    for size in range(1, len(rows) + 1):
        for support in combinations(range(len(rows)), size):
            # Stationarity on the support and Σ π = 1, with the multiplier as the last unknown.
            system = [[*(gram[i][j] for j in support), Fraction(-1)] for i in support]
            system.append([*(Fraction(1) for _ in support), Fraction(0)])
            solution = solve_exactly(system, [*(Fraction(0) for _ in support), Fraction(1)])
            if solution is None or min(solution[:-1]) < 0:
                continue
            value = sum(
                solution[a] * solution[b] * gram[i][j]
                for a, i in enumerate(support)
                for b, j in enumerate(support)
            )
            best = value if best is None else min(best, value)
    assert best is not None
    return float(best)


def exact_norm(gradients: np.ndarray, weights: np.ndarray) -> float:
    """‖Σ π_i g_i‖² of given weights without rounding."""
    combined = [
        sum(
            (Fraction(float(w)) * Fraction(float(v)) for w, v in zip(weights, column, strict=True)),
            Fraction(0),
        )
        for column in gradients.T
    ]
    return float(sum(value * value for value in combined))


class TestGoldens:
    def test_pairs(self, goldens: dict[str, Any]) -> None:
        stored = goldens["closed_form_pairs"]
        assert len(stored["rows"]) == 13
        for row in stored["rows"]:
            g11, g12, g22 = row["gram"]
            weights = min_norm_weights(torch.tensor([[g11, g12], [g12, g22]], dtype=torch.float64))
            np.testing.assert_allclose(weights, row["pi"], rtol=0, atol=stored["atol"], err_msg=row["name"])
            gradients = np.array([row["g1"], row["g2"]])
            direction = weights.numpy() @ gradients
            np.testing.assert_allclose(direction, row["g_star"], rtol=0, atol=stored["atol"])
            np.testing.assert_allclose(
                gradients @ direction, [row["dot_g1"], row["dot_g2"]], rtol=0, atol=1e-12
            )

    def test_three_objectives(self, goldens: dict[str, Any]) -> None:
        stored = goldens["min_norm_k3"]
        assert len(stored["cases"]) == 6
        for case in stored["cases"]:
            weights = weights_of(np.array(case["J"]))
            np.testing.assert_allclose(weights, case["pi"], rtol=0, atol=stored["atol"], err_msg=case["kind"])
            assert [i for i, w in enumerate(weights) if w > 0] == case["support"]
            np.testing.assert_allclose(
                np.array(case["gram"]) @ weights, case["dots"], rtol=0, atol=stored["atol"]
            )

    def test_frank_wolfe_is_not_exact(self, goldens: dict[str, Any]) -> None:
        """Why the own solver exists: torchjd's default leaves 38 % of excess norm here."""
        case = next(case for case in goldens["min_norm_k3"]["cases"] if case["kind"] == "rank2")
        gram = torch.tensor(case["gram"], dtype=torch.float64)
        iterated = MGDAWeighting()(gram)
        assert (iterated @ gram @ iterated).item() > 1.3 * case["min_norm_sq"]


class TestAgreement:
    @pytest.mark.parametrize("count", [2, 3, 4])
    @given(data=st.data())
    @repeatable
    def test_with_brute_force(self, count: int, data: st.DataObject) -> None:
        gradients = data.draw(gradient_rows(count))
        weights = weights_of(gradients)
        # The Gram matrix itself is rounded: errors are relative to the gradients that take part.
        scale = (weights @ np.linalg.norm(gradients, axis=1)) ** 2
        assert exact_norm(gradients, weights) == pytest.approx(
            brute_force(gradients), rel=1e-9, abs=1e-9 * scale
        )

    @given(gradient_rows(2))
    @settings(repeatable, max_examples=30)  # theirs takes a thousand iterations
    def test_with_torchjd(self, gradients: np.ndarray) -> None:
        gram = torch.from_numpy(gradients @ gradients.T)
        theirs = MGDAWeighting(epsilon=1e-12, max_iters=1000)(gram)
        ours = min_norm_weights(gram)
        np.testing.assert_allclose(
            ours @ gram @ ours, theirs @ gram @ theirs, rtol=1e-9, atol=1e-12 * gram.max()
        )

    @given(gradient_rows(2))
    @repeatable
    def test_of_closed_form_and_search(self, gradients: np.ndarray) -> None:
        """A third gradient that cannot help leaves the other two as they are."""
        far = 1e3 * (1 + np.abs(gradients).max())
        gradients = np.hstack([gradients, np.ones((2, 1))])
        three = np.vstack([gradients, np.zeros(gradients.shape[1])])
        three[2, -1] = far
        np.testing.assert_allclose(weights_of(three)[:2], weights_of(gradients), rtol=0, atol=1e-5)


class TestProperties:
    @given(gradient_rows())
    @repeatable
    def test_weights_lie_on_the_simplex(self, gradients: np.ndarray) -> None:
        weights = weights_of(gradients)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-12)

    @given(gradient_rows())
    @repeatable
    def test_common_descent(self, gradients: np.ndarray) -> None:
        """⟨g*, g_i⟩ ≥ ‖g*‖² for every i, and ‖g*‖ ≤ min ‖g_i‖."""
        weights = weights_of(gradients)
        direction = weights @ gradients
        norms = np.linalg.norm(gradients, axis=1)
        slack = 1e-9 * (weights @ norms) * (norms + weights @ norms)
        assert (gradients @ direction >= direction @ direction - slack).all()
        assert np.linalg.norm(direction) <= norms.min() + 1e-6 * (weights @ norms)

    @given(gradient_rows(2))
    @repeatable
    def test_interior_solution(self, gradients: np.ndarray) -> None:
        """Equal contributions (g11 g22 − g12²) / ‖g_1 − g_2‖² = ‖g*‖², and Corollary 3.5."""
        (g11, g12), (_, g22) = gradients @ gradients.T
        assume(g12 < 0.999 * min(g11, g22))
        weights = weights_of(gradients)
        direction = weights @ gradients
        expected = (g11 * g22 - g12**2) / (g11 + g22 - 2 * g12)
        scale = (weights @ np.linalg.norm(gradients, axis=1)) * np.sqrt([g11, g22])
        np.testing.assert_array_less(np.abs(gradients @ direction - expected), 1e-9 * scale + 1e-300)
        assert weights.min() > 0
        if g11 != g22:
            bound = sqrt(g11 * g22) / abs(sqrt(g11) - sqrt(g22))
            assert np.linalg.norm(direction) <= bound * (1 + 1e-9)

    @given(gradient_rows(2))
    @repeatable
    def test_clamp_is_active_exactly_when_the_gradients_agree_enough(self, gradients: np.ndarray) -> None:
        (g11, g12), (_, g22) = gradients @ gradients.T
        assume(g11 != g22 and min(g11, g22) > 0 and abs(g12 - min(g11, g22)) > 1e-9 * max(g11, g22))
        assert (weights_of(gradients).max() == 1) == (g12 > min(g11, g22))

    @given(gradient_rows(2))
    @repeatable
    def test_bounds_on_the_norm(self, gradients: np.ndarray) -> None:
        """The correct form of Corollary 3.4: min ‖g_i‖ cos(θ/2) ≤ ‖g*‖ ≤ min ‖g_i‖."""
        first, second = np.linalg.norm(gradients, axis=1)
        assume(min(first, second) > 0)
        cosine = float(np.clip(gradients[0] / first @ gradients[1] / second, -1, 1))
        norm = np.linalg.norm(weights_of(gradients) @ gradients)
        smaller = min(first, second)
        assert norm >= smaller * cos(acos(cosine) / 2) - 1e-7 * smaller
        assert norm <= smaller + 1e-6 * smaller

    @pytest.mark.parametrize(("cosine", "norm"), [(-0.9, 0.22360679774997896), (-0.99, 0.07071067811865482)])
    def test_corollary_3_4_is_false(self, cosine: float, norm: float) -> None:
        gradients = np.array([[1.0, 0.0], [cosine, sqrt(1 - cosine**2)]])
        found = np.linalg.norm(weights_of(gradients) @ gradients)
        assert found == pytest.approx(norm, rel=1e-9)
        assert found < 1 / sqrt(2), "the corollary promises at least min ‖g_i‖ / √2"

    def test_corollary_3_4_fails_completely_for_opposite_gradients(self) -> None:
        gradients = np.array([[1.0, 2.0], [-1.0, -2.0]])
        assert np.linalg.norm(weights_of(gradients) @ gradients) == 0

    @given(gradient_rows(sizes=st.sampled_from([0.5, 1.0, 3.0])))
    @repeatable
    def test_permutation_equivariance(self, gradients: np.ndarray) -> None:
        """Also where the minimiser is not unique, because the least ‖π‖ is."""
        weights = weights_of(gradients)
        for order in self.generators(len(gradients)):
            np.testing.assert_allclose(weights_of(gradients[order]), weights[order], rtol=0, atol=1e-6)

    @given(gradient_rows())
    @repeatable
    def test_permutation_keeps_the_direction(self, gradients: np.ndarray) -> None:
        """Where large gradients cancel, rounding leaves the weight of tiny ones open, but not g*."""
        weights = weights_of(gradients)
        scale = weights @ np.linalg.norm(gradients, axis=1)
        for order in self.generators(len(gradients)):
            permuted = weights_of(gradients[order]) @ gradients[order]
            assert np.linalg.norm(permuted - weights @ gradients) <= 2e-6 * scale

    @staticmethod
    def generators(count: int) -> list[list[int]]:
        """A swap and a cycle: every permutation is made of them."""
        return [[1, 0, *range(2, count)], [*range(1, count), 0]]

    @given(gradient_rows(), st.sampled_from([1e-6, 0.5, 7.0, 1e6]))
    @repeatable
    def test_a_common_factor_changes_nothing(self, gradients: np.ndarray, factor: float) -> None:
        np.testing.assert_allclose(weights_of(factor * gradients), weights_of(gradients), rtol=0, atol=1e-6)

    @given(gradient_rows(), st.integers(0, 2**31))
    @repeatable
    def test_only_angles_and_lengths_matter(self, gradients: np.ndarray, seed: int) -> None:
        rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(gradients.shape[1],) * 2))
        turned = gradients @ rotation
        direction, turned_direction = weights_of(gradients) @ gradients, weights_of(turned) @ turned
        scale = 1e-9 * weights_of(gradients) @ np.linalg.norm(gradients, axis=1) + 1e-300
        assert abs(direction @ direction - turned_direction @ turned_direction) <= scale * (
            np.linalg.norm(gradients, axis=1).max()
        )

    def test_larger_gradient_gets_less(self) -> None:
        for ratio in (2.0, 10.0, 1e4):
            weights = weights_of(np.diag([1.0, ratio]))
            np.testing.assert_allclose(weights, [ratio**2 / (1 + ratio**2), 1 / (1 + ratio**2)], rtol=1e-12)


class TestDegenerate:
    @pytest.mark.parametrize("count", [2, 3, 5, 8])
    def test_equal_gradients_share_equally(self, count: int) -> None:
        gradients = np.tile([0.3, -0.7, 0.2], (count, 1))
        np.testing.assert_allclose(weights_of(gradients), np.full(count, 1 / count), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("count", [1, 2, 3, 8])
    def test_all_zero(self, count: int) -> None:
        np.testing.assert_allclose(
            weights_of(np.zeros((count, 3))), np.full(count, 1 / count), rtol=0, atol=1e-15
        )

    def test_two_equal_of_three(self) -> None:
        gradients = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        np.testing.assert_allclose(weights_of(gradients), [0.25, 0.5, 0.25], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("count", [4, 6, 8])
    def test_many_objectives_in_few_dimensions(self, count: int) -> None:
        """Zero lies in the hull of the corners of a polygon; by symmetry all share."""
        angles = 2 * np.pi * np.arange(count) / count
        gradients = np.stack([np.cos(angles), np.sin(angles)], 1)
        np.testing.assert_allclose(weights_of(gradients), np.full(count, 1 / count), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_not_finite_gives_nan(self, count: int) -> None:
        gram = torch.eye(count, dtype=torch.float64)
        gram[0, 0] = torch.inf
        assert min_norm_weights_of_live(gram).isnan().all()
        gram[0, 0] = torch.nan
        assert min_norm_weights_of_live(gram).isnan().all()

    @pytest.mark.parametrize("shape", [(9, 9), (2, 3), (3,), (0, 0)])
    def test_refused_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"Gram|at most 8"):
            min_norm_weights(torch.ones(shape))

    def test_float32_gram_is_solved_in_float64(self) -> None:
        weights = min_norm_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        assert weights.dtype == torch.float64
        np.testing.assert_allclose(weights, [0.2, 0.8], rtol=0, atol=1e-15)


class TestVanishedObjectives:
    def test_solver_alone_would_stop_training(self) -> None:
        np.testing.assert_array_equal(weights_of(np.array([[0.0, 0.0], [1.0, 2.0]])), [1, 0])

    @pytest.mark.parametrize(
        ("gradients", "expected"),
        [
            ([[0.0, 0.0], [1.0, 2.0]], [0, 1]),
            ([[1.0, 2.0], [1e-7, 0.0]], [1, 0]),
            ([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [0, 0.2, 0.8]),
            ([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [0, 1, 0]),
            ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
            ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [1 / 3] * 3),
            ([[0.0, 0.0]], [1]),
            ([[1.0, 1.0], [-1.0, -1.0]], [0.5, 0.5]),
            ([[1.0, 0.0], [-3.0, 0.0]], [0.75, 0.25]),
            ([[1e3, 0.0], [0.0, 1.0]], [1 / (1 + 1e6), 1e6 / (1 + 1e6)]),
        ],
    )
    def test_left_out(self, gradients: list[list[float]], expected: list[float]) -> None:
        matrix = torch.tensor(gradients, dtype=torch.float64)
        np.testing.assert_allclose(min_norm_weights_of_live(matrix @ matrix.T), expected, rtol=0, atol=1e-12)
