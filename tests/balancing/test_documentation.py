"""The examples of docs/balancing.md are run as they are printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.documentation.pages import python_blocks

PAGE = "docs/balancing.md"


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    """What the page's code leaves behind, all of its blocks run in one namespace."""
    blocks = python_blocks(PAGE)
    assert len(blocks) == 3
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE}, block {number}", "exec"), namespace)
    return namespace


def test_retinanet_is_balanced_without_being_edited(ran: dict[str, Any]) -> None:
    latest = ran["latest"]
    assert latest["pi/cls"] + latest["pi/box"] == pytest.approx(1, abs=1e-9)
    assert -1 <= latest["cosine/cls_box"] <= 1
    assert latest["loss_cls"] > 0 and latest["loss_box_reg"] > 0


def test_own_balancer_is_a_single_method(ran: dict[str, Any]) -> None:
    assert set(ran["weights"]) == {"raw_weight/cls", "raw_weight/box"}
    assert sum(ran["weights"].values()) == pytest.approx(1, abs=1e-9)
