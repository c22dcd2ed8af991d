"""What only a GPU can show."""

from __future__ import annotations

import math

import pytest
import torch

from mokd_det.balancing import Amortized
from mokd_det.engine import AtomicCheckpointer
from tests.engine.helpers import differences, make_trainer, run_one_step, snapshot
from tests.engine.toy import ToyDetector, ToyLoader

pytestmark = pytest.mark.gpu


def cuda_trainer(**options):
    torch.manual_seed(0)
    return make_trainer(Amortized(), model=ToyDetector().cuda(), **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_and_late_scalars(dtype):
    trainer = cuda_trainer(
        amp={"enabled": True, "dtype": dtype}, clip_grad={"max_norm": 1.0, "norm_type": 2.0}
    )
    storage = run_one_step(trainer, 5)
    assert "total_loss" in storage.latest()
    assert "pi/cls" not in storage.latest(), "left on the device until the next step"
    trainer.storage = storage
    trainer.flush_scalars()
    latest = storage.latest()
    assert latest["pi/cls"][1] == 5
    assert all(latest[f"{part}_time"][0] >= 0.0 for part in ("data", "teacher", "student", "balance"))
    assert latest["student_time"][0] > 0.0
    assert math.isfinite(latest["total_loss"][0])


def test_dropout_masks_repeat_and_resume(tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = cuda_trainer()
        whole.train(0, 5)
        first = cuda_trainer()
        first.train(0, 2)
        first.iter = 1
        AtomicCheckpointer(first.module, str(tmp_path), trainer=first).save("model_0000001", iteration=1)
        second = cuda_trainer()
        torch.cuda.manual_seed(77)
        AtomicCheckpointer(second.module, str(tmp_path), trainer=second).resume()
        second.train(2, 5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert differences(snapshot(whole), snapshot(second)) == []


def test_a_skipped_step_on_the_device():
    loader = ToyLoader(poison={index: {"loss_bbox": 1e35} for index in range(4)})
    trainer = cuda_trainer(loader=loader, amp={"enabled": True, "dtype": "float16"})
    before = snapshot(trainer)
    run_one_step(trainer, 0)
    after = snapshot(trainer)
    assert differences(before["balancer"], after["balancer"]) == []
    assert torch.equal(before["model"]["backbone.weight"], after["model"]["backbone.weight"])
    assert after["grad_scaler"]["scale"] < before["grad_scaler"]["scale"]
