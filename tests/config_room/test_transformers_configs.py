"""Hugging Face detectors on own data, by the shipped configs: from folders of weights to an exported student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mokd_det.config import load_config
from mokd_det.engine.build import build_trainer
from mokd_det.errors import ConfigError
from mokd_det.modeling import TransformersDetector
from tests.config_room.test_own_data import CONFIGS, catalogs, paths, run  # noqa: F401
from tests.config_room.test_own_data import folder as data_folder  # noqa: F401
from tests.documentation.pages import ROOT, blocks, commands, python_blocks
from tests.modeling.tiny_transformers import tiny_config

transformers = pytest.importorskip("transformers")

SMALL = (
    "images.side=64",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "data.total_batch_size=2",
)
CROP = "dataloader.train.mapper.augmentation=[]"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of save_pretrained, of other classes than the data's, and one of a ViT."""
    root = tmp_path_factory.mktemp("weights")
    for name, kind in (("rtdetrv2", "RTDetrV2"), ("dfine", "DFine")):
        torch.manual_seed(0)
        TransformersDetector(tiny_config(f"{kind}ForObjectDetection"), image_size=64).save_pretrained(
            root / name
        )
    vit = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=42)
    transformers.AutoModel.from_config(vit).save_pretrained(root / "dinov2")
    return root


def test_from_two_folders_to_a_student_that_transformers_loads(
    data_folder: Path,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    """The commands of docs/transformers.md, on tiny models."""
    page = "docs/transformers.md"
    words = [words for block in blocks(page) if block.language == "bash" for words in commands(block.text)]
    (command,) = (line for line in words if any(word.endswith("mokd_transformers.py") for word in line))
    config, arguments = ROOT / command[3], command[4:]
    own = dict(pair.split("=") for pair in paths(data_folder))
    sources = (f"model.student.source={weights}/rtdetrv2", f"model.teacher.source={weights}/dfine")
    own |= dict(pair.split("=") for pair in sources)
    arguments = [f"{key}={own.pop(key)}" for key in (argument.split("=")[0] for argument in arguments)]
    assert not own
    log = run(config, tmp_path / "run", *SMALL, *arguments, "train.max_iter=2")
    assert "re-initialised" in log and "enc_score_head.bias: other classes of the same number" in log
    assert "Own data: 3 classes (screw, nut, bolt)" in log and "queries are matched by boxes alone" in log
    exported = tmp_path / "run" / "student_final"
    (snippet,) = python_blocks(page)
    found: dict[str, Any] = {}
    exec(snippet.replace("output/custom/mokd_transformers/student_final", str(exported)), found)
    plain, processor = found["model"].eval(), found["processor"]
    assert plain.config.id2label == {0: "screw", 1: "nut", 2: "bolt"}
    student = TransformersDetector(exported).eval()
    assert student.image_size == (64, 64) and student.class_names == ("screw", "nut", "bolt")
    weights_file = f"train.init_checkpoint={tmp_path / 'run' / 'student_final.pth'}"
    log = run(config, tmp_path / "eval", *SMALL, *sources, *paths(data_folder), weights_file, "--eval-only")
    assert (tmp_path / "eval" / "results.json").is_file()
    image = torch.randint(0, 256, (3, 80, 64), dtype=torch.uint8)
    with torch.no_grad():
        ours = student.postprocess(
            *student.detect_tensors(student.preprocess([{"image": image}])[0], None), [{"image": image}]
        )
        inputs = processor(images=image, return_tensors="pt")
        theirs = processor.post_process_object_detection(plain(**inputs), 0.0, [(80, 64)])
    torch.testing.assert_close(ours[0]["instances"].scores, theirs[0]["scores"], rtol=1e-5, atol=1e-6)


def test_two_teachers_have_an_objective_each(
    data_folder: Path,  # noqa: F811
    weights: Path,
    tmp_path: Path,
) -> None:
    sources = (
        f"model.student.source={weights}/rtdetrv2",
        f"model.teacher.detector.source={weights}/dfine",
        f"model.teacher.foundation.source={weights}/dinov2",
    )
    run(
        CONFIGS / "two_teachers.py",
        tmp_path,
        *SMALL,
        *sources,
        *paths(data_folder),
        "data.val=null",
        "train.max_iter=2",
    )
    written = (tmp_path / "metrics.json").read_text()
    assert all(f'"pi/{name}"' in written for name in ("detector", "foundation", "task"))


def test_alone_and_without_a_source(data_folder: Path, weights: Path, tmp_path: Path) -> None:  # noqa: F811
    config = CONFIGS / "transformers.py"
    run(config, tmp_path, *SMALL, f"model.source={weights}/dfine", *paths(data_folder), "train.max_iter=1")
    assert (tmp_path / "student_final" / "model.safetensors").is_file()
    cfg = load_config(str(config), [*SMALL, *paths(data_folder)])
    from mokd_det.config import TrainSettings

    with pytest.raises(ConfigError, match="source is empty"):
        build_trainer(cfg, TrainSettings.from_config(cfg.train))
