from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from mokd_det.balancing import Objectives
from mokd_det.errors import ConfigError

VIDT = ["loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "loss_bbox_0", "loss_giou_0", "loss_distill_patch"]


def losses(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(2.0**index, requires_grad=True) for index, name in enumerate(names)}


def test_sums_each_group_in_the_configured_order_with_graph() -> None:
    objectives = Objectives({"distill": ["loss_distill_*"], "task": ["loss_ce*", "loss_bbox*", "loss_giou*"]})
    named = losses(*VIDT)
    values = objectives(named)
    assert objectives.names == ("distill", "task") and len(objectives) == 2
    assert values.tolist() == [64.0, 63.0]
    values[1].backward()
    assert named["loss_giou_0"].grad == 1 and named["loss_distill_patch"].grad == 0


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"all": "loss_*"}, [127.0]),
        (
            {"distill": "loss_distill_*", "cls": ["loss_ce*"], "box": ["loss_bbox*", "loss_giou*"]},
            [64.0, 9.0, 54.0],
        ),
    ],
)
def test_number_of_objectives_is_configuration_only(patterns: dict, expected: list[float]) -> None:
    assert Objectives(patterns)(losses(*VIDT)).tolist() == expected


def test_configuration_containers_are_accepted() -> None:
    config = OmegaConf.create({"a": ["loss_a*"], "b": ["loss_b"]})
    assert Objectives(config)(losses("loss_a", "loss_b", "loss_a2")).tolist() == [5.0, 2.0]


def test_half_precision_is_summed_in_float32_and_float64_is_kept() -> None:
    objectives = Objectives({"all": ["*"]})
    half = {"a": torch.tensor(2048.0, dtype=torch.float16), "b": torch.tensor(1.0, dtype=torch.float16)}
    assert objectives(half).dtype == torch.float32 and objectives(half).item() == 2049.0
    assert objectives({"a": torch.tensor(1.0, dtype=torch.float64)}).dtype == torch.float64


def test_losses_that_appear_later_are_matched_too() -> None:
    objectives = Objectives({"all": ["loss_*"]})
    assert objectives(losses("loss_a")).item() == 1.0
    with pytest.raises(ConfigError, match="'extra' matches no objective"):
        objectives(losses("loss_a", "extra"))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"task": ["loss_ce*"]}, r"loss 'loss_bbox' matches no objective"),
        (
            {"task": ["loss_*"], "cls": ["loss_ce"]},
            r"loss 'loss_ce' matches several objectives \(task, cls\)",
        ),
        (
            {"task": ["loss_*"], "box": ["los_box*"]},
            r"objectives\.box = \['los_box\*'\] matches none .*loss_ce",
        ),
    ],
)
def test_every_loss_belongs_to_exactly_one_objective(patterns: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objectives(patterns)(losses("loss_ce", "loss_bbox"))


@pytest.mark.parametrize(
    "patterns", [{}, [], {"": ["a"]}, {"a": []}, {"a": None}, {"a": [""]}, {"a": [3]}, {3: ["a"]}]
)
def test_malformed_patterns_are_refused(patterns: object) -> None:
    with pytest.raises(ConfigError, match="objectives"):
        Objectives(patterns)


@pytest.mark.parametrize("value", [torch.ones(3), 1.5])
def test_a_loss_must_be_a_scalar_tensor(value: object) -> None:
    with pytest.raises(ConfigError, match="'loss_a' must be a scalar tensor"):
        Objectives({"all": ["*"]})({"loss_a": value})


def test_a_sum_may_weigh_its_terms() -> None:
    objectives = Objectives(
        OmegaConf.create({"distill": {"loss_a*": 25.0, "loss_b": 50}, "task": ["loss_c"]})
    )
    named = losses("loss_a", "loss_a2", "loss_b", "loss_c")
    values = objectives(named)
    assert values.tolist() == [25.0 * (1 + 2) + 50.0 * 4, 8.0]
    values[0].backward()
    assert [named[name].grad.item() for name in named] == [25.0, 25.0, 50.0, 0.0]


def test_weights_of_equal_size_may_overlap_others_may_not() -> None:
    assert Objectives({"all": {"loss_*": 2.0, "loss_a": 2.0}})(losses("loss_a")).tolist() == [2.0]
    with pytest.raises(ConfigError, match=r"objectives\.all gives loss 'loss_a' several weights"):
        Objectives({"all": {"loss_*": 2.0, "loss_a": 3.0}})(losses("loss_a"))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), "4", True, None])
def test_a_weight_that_is_no_positive_number_is_refused(weight: object) -> None:
    with pytest.raises(
        ConfigError, match=r"objectives\.all: the weight of 'loss_a' must be a number above 0"
    ):
        Objectives({"all": {"loss_a": weight}})
