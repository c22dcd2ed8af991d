"""The arithmetic of the scaling model, and its counts on a small image."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def model(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("scaling_model")


@pytest.fixture
def counts(model: ModuleType) -> object:
    return model.Counts(
        student=10_000_000, method=2_500_000, teacher=80_000_000, student_work=10**10, teacher_work=3 * 10**10
    )


def test_one_gpu_only_computes(model: ModuleType, counts) -> None:
    machine = model.Machine(tflops=10, bus=100, latency=1e-3, overlap=0.5)
    step = model.predict(counts, machine, gpus=1, batch=5)
    # 5 images x 2 x (3 + 1) x 1e10 for the student, 5 x 2 x 3e10 for the teacher, at 1e13 a second
    assert step.seconds == pytest.approx(0.04 + 0.03)
    assert step.teacher_share == pytest.approx(3 / 7)
    assert step.images_per_second == pytest.approx(5 / 0.07)
    tenth = model.predict(counts, machine, gpus=1, batch=5, update_every=10)
    assert tenth.seconds == pytest.approx(0.031 + 0.03)


def test_exchange_of_several(model: ModuleType, counts) -> None:
    slow = model.Machine(tflops=10, bus=1, latency=1e-3, overlap=0.5)
    step = model.predict(counts, slow, gpus=4, batch=5)
    # a ring of 4 carries 1.5 times 50 MB over each link; half of the backward's 20 ms hides some of it
    assert step.exposed == pytest.approx(0.075 - 0.01)
    assert step.balancer == pytest.approx(2e-3)
    fast = model.Machine(tflops=10, bus=1000, latency=0, overlap=0.5)
    assert model.predict(counts, fast, gpus=4, batch=5).exposed == 0
    exact = model.predict(counts, slow, gpus=4, batch=5, exact=True)
    # two gradients of the student and one of the method, nothing hidden; two backward passes, no second forward
    assert exact.balancer == pytest.approx(1.5 * 4 * 22.5e6 / 1e9)
    assert exact.compute == pytest.approx(0.01 + 2 * 0.02 + 0.03)


@pytest.mark.slow
def test_counts_of_a_config(model: ModuleType) -> None:
    found = model.count("mokd_vidt_nano", (64, 96))
    assert 15e6 < found.student < 16e6 and 1e6 < found.method < 3e6 and 95e6 < found.teacher < 105e6
    assert found.trained == found.student + found.method
    assert 0 < found.student_work < found.teacher_work


@pytest.mark.slow
def test_activations_grow_with_the_batch_and_are_counted_once(model: ModuleType) -> None:
    one, two = (model.activation_bytes("mokd_vidt_nano", (64, 96), batch) for batch in (1, 2))
    assert 1.3 * one < two < 2.2 * one
