"""The host never waits for the device within a step, but for the matching and for the look at the losses."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from mokd_det.balancing import Amortized, Objectives
from mokd_det.balancing.base import StepContext
from mokd_det.config import load_config
from mokd_det.engine import MoKDTrainer, get_vidt_param_groups
from mokd_det.engine.optimizer import with_fast_kernel
from mokd_det.modeling import HungarianMatcher
from mokd_det.modeling.matcher import Matches
from tests.engine.helpers import run_one_step

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "mokd.py"
OBJECTIVES = {"distill": ["loss_distill_*"], "task": ["loss_ce*", "loss_bbox*", "loss_giou*"]}


def distiller(device: str) -> nn.Module:
    cfg = load_config(str(CONFIG), [])
    cfg.model.teacher_checkpoint = ""
    torch.manual_seed(0)
    return instantiate(cfg.model).train().to(device)


def batch() -> list[dict]:
    """Two images, one of them with padding."""
    items = []
    for index, (height, width) in enumerate(((64, 64), (64, 48))):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 40.0], [10.0, 8.0, 44.0, 40.0]]))
        instances.gt_classes = torch.tensor([3, 7])
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        items.append(
            {"image": image, "height": height, "width": width, "instances": instances, "image_id": index}
        )
    return items


class _Batches:
    def __iter__(self):
        while True:
            yield batch()


def test_no_value_is_read_on_the_device(monkeypatch) -> None:
    """On the "meta" device, where there are no values, each attempt to read one is an error."""

    def any_matches(self, logits: Tensor, boxes: Tensor, targets) -> Matches:
        self.costs(logits, boxes, *targets.padded())
        image = (torch.tensor([0, 1]).numpy(), torch.tensor([0, 1]).numpy())
        return Matches([[image] * len(targets.counts)] * len(logits), targets.offsets, logits.device)

    real = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device_type, **o: nullcontext() if device_type == "meta" else real(device_type, **o),
    )
    # The one transfer that a step needs.
    monkeypatch.setattr(HungarianMatcher, "forward", any_matches)
    model = distiller("meta")
    objectives, balancer = Objectives(OBJECTIVES), Amortized()
    balancer.setup(objectives.names, "meta")
    optimizer = with_fast_kernel(torch.optim.AdamW(get_vidt_param_groups(model), foreach=True))
    prepared = model.prepare_batch(batch())

    def forward(*, sync: bool = True) -> Tensor:
        losses = objectives(model(prepared))
        assert losses.device.type == "meta"
        return losses

    context = StepContext(model.shared_parameters(), model.private_parameters())
    scalars = balancer.backward([forward], context)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.after_step()
    assert {**scalars, **balancer.after_step([forward], context)}.keys() >= {"pi/task", "log_gain/distill"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        scalars["pi/task"].item()


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [None, {"enabled": True, "dtype": "bfloat16"}], ids=["float32", "bfloat16"])
def test_a_step_on_a_gpu_waits_for_the_matchings_alone(amp) -> None:
    model = distiller("cuda")
    trainer = MoKDTrainer(
        model,
        _Batches(),
        with_fast_kernel(torch.optim.AdamW(get_vidt_param_groups(model), lr=1e-4)),
        objectives=Objectives(OBJECTIVES),
        balancer=Amortized(),
        amp=amp,
        clip_grad={"max_norm": 0.1, "norm_type": 2.0},
    )
    for iteration in range(3):
        run_one_step(trainer, iteration)  # fills what is kept for a shape, starts libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_one_step(trainer, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
    # One for each of the two forwards; events, by which the losses are read, are not counted by torch.
    assert [place.rpartition("/")[2].partition(":")[0] for place in waits] == ["matcher.py"] * 2, waits
