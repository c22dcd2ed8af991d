"""Heads of dense detectors, which every level of the pyramid runs through alone, and where to cut them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import nn

__all__ = ["BoxCoding", "CutHead", "DenseHead", "HasDenseHeads", "dense_heads"]

BoxCoding = Literal["deltas", "distances", "bins"]


@dataclass(frozen=True)
class CutHead:
    """A head in two parts.

    Attributes:
        features: path of the module whose output is the first part's.
        channels: of that output.
        rest: the modules from there to the predictions, in order.
        outputs: channels of the predictions.
    """

    features: str
    channels: int
    rest: tuple[nn.Module, ...]
    outputs: int


@dataclass(frozen=True)
class DenseHead:
    """One head, shared by all levels: a tower of convolutions and a last layer.

    Attributes:
        tower: path of the ``nn.Sequential`` of convolutions, norms and activations.
        predictor: path of the last convolution. Its output (B, A·n, H, W) has the A anchors of a cell one after the
            other, each with its n numbers: classes (sigmoid), or a box.
        boxes: what the numbers of a box are: "deltas" (dx, dy, log w, log h) to its anchor, "distances" (left, top,
            right, bottom) in any unit of the level, after a ReLU, or "bins", logits of 4 distributions over
            equidistant distances; None: they are classes.
    """

    tower: str
    predictor: str
    boxes: BoxCoding | None = None

    def cut(self, model: nn.Module, convolutions: int) -> CutHead | None:
        """The head of ``model`` cut after so many convolutions of its tower; None if it has none to follow."""
        parts = list(model.get_submodule(self.tower).children())
        starts = [i for i, part in enumerate(parts) if _convolutions(part)]
        if not 0 < convolutions < len(starts):
            return None
        end, last = starts[convolutions], _convolutions(parts[starts[convolutions - 1]])[-1]
        predictor = model.get_submodule(self.predictor)
        assert isinstance(predictor, nn.Conv2d)
        rest = (*parts[end:], predictor)
        return CutHead(f"{self.tower}.{end - 1}", last.out_channels, rest, predictor.out_channels)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


@runtime_checkable
class HasDenseHeads(Protocol):
    """A detector that says where its dense heads are."""

    def dense_heads(self) -> Mapping[str, DenseHead]:
        """ "class" and "box"; empty if this one has none."""


def dense_heads(model: nn.Module) -> Mapping[str, DenseHead]:
    """ "class" and "box" of Detectron2's RetinaNet and FCOS and of models that say so; empty for others."""
    if isinstance(model, HasDenseHeads):
        return model.dense_heads()
    if isinstance(model, (RetinaNet, FCOS)):
        coding: BoxCoding = "distances" if isinstance(model, FCOS) else "deltas"
        return {
            "class": DenseHead("head.cls_subnet", "head.cls_score"),
            "box": DenseHead("head.bbox_subnet", "head.bbox_pred", coding),
        }
    return {}
