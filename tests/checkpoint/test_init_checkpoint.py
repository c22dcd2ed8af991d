"""The ordinary path: ``train.init_checkpoint`` reads published files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, OmegaConf

from mokd_det.config import TrainSettings
from mokd_det.engine import do_test
from mokd_det.errors import CheckpointError
from mokd_det.modeling import top_predictions
from tests.checkpoint.test_vidt_import import CATEGORIES
from tests.modeling import golden

CONFIGS = Path(__file__).parents[2] / "configs"


def image() -> torch.Tensor:
    return torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


class FirstImage(DatasetEvaluator):
    """Scores and labels of the first image."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.instances = outputs[0]["instances"]

    def evaluate(self) -> dict[str, dict[str, float]]:
        scores, labels = self.instances.scores, self.instances.pred_classes
        return {"first": {f"{i}": float(scores[i]) + int(labels[i]) for i in range(10)}}


def test_loader() -> list[list[dict]]:
    return [[{"image": image(), "height": 64, "width": 96}]]


test_loader.__test__ = False  # type: ignore[attr-defined]


def configuration(variant: str) -> DictConfig:
    return OmegaConf.create(
        {
            "model": LazyConfig.load(str(CONFIGS / "common" / "vidt.py"))[variant],
            "dataloader": {"test": L(test_loader)(), "evaluator": L(FirstImage)()},
        },
        flags={"allow_objects": True},
    )


def settings(path: Path, output_dir: Path, **options: str) -> TrainSettings:
    return TrainSettings(
        max_iter=1, device="cpu", init_checkpoint=str(path), output_dir=str(output_dir), **options
    )


def test_a_published_file_is_evaluated_as_it_is(vidt_file, tmp_path):
    results = do_test(configuration("nano"), settings(vidt_file, tmp_path))
    official = golden.build("vidt_swin_nano")
    with torch.no_grad():
        output = official.forward_tensors(*official.preprocess([{"image": image()}]))
    scores, labels, _ = top_predictions(
        output.logits[-1][..., CATEGORIES], output.boxes[-1], torch.tensor([[64, 96]])
    )
    wanted = [float(score) + int(label) for score, label in zip(scores[0, :10], labels[0, :10])]
    assert list(results["first"].values()) == pytest.approx(wanted, abs=1e-5)


def test_options_of_the_config_reach_the_loader(vidt_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"91 classes, the model 80 .*keep_rows='coco80' picks"):
        do_test(configuration("nano"), settings(vidt_file, tmp_path, init_keep_rows="all"))
    options = {"init_keep_rows": "all", "init_on_class_mismatch": "reinit"}
    assert do_test(configuration("nano"), settings(vidt_file, tmp_path, **options))
    with pytest.raises(CheckpointError, match=r"looks like ViDT-nano .*the model is ViDT-tiny"):
        do_test(configuration("tiny"), settings(vidt_file, tmp_path))
