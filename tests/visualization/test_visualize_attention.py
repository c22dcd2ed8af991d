"""tools/visualize_attention.py, by its real entry point on small random models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from matplotlib.image import imread
from PIL import Image

from mokd_det.config import load_config
from mokd_det.data import digits, register_coco_format
from mokd_det.tools import visualize_attention as visualize_attention_tool
from tests.forks import environment, run

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "visualize_attention.py"

CLASSIFIER = """
from detectron2.config import LazyCall as L, LazyConfig
from pathlib import Path
import numpy as np, timm, torch
from torchvision.transforms import v2
from mokd_det.classification import ImageClassifier
from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.evaluator import ClassificationEvaluator
from mokd_det.classification.loader import build_classification_test_loader, build_classification_train_loader

def to_tensor():
    return v2.Compose([v2.Resize((32, 48)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                       v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])

def images():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    return ArrayDataset("noise", ["calm", "wild"], [0, 1, 0, 1, 1], pixels)

def network(depth):
    torch.manual_seed(depth)
    return timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=depth,
                             num_heads=3, num_classes=2)

noise = L(images)()
model = L(ImageClassifier)(network=L(network)(depth=2), num_classes=2)
dataloader = dict(
    train=L(build_classification_train_loader)(dataset=noise, transform=L(to_tensor)(), total_batch_size=2),
    test=L(build_classification_test_loader)(dataset=noise, transform=L(to_tensor)()),
    evaluator=L(ClassificationEvaluator)(dataset=noise),
)
base = LazyConfig.load(BASE)
optimizer, lr_multiplier, balancer = base.optimizer, base.lr_multiplier, base.balancer
objectives = dict(task=["loss_cls"])
train = dict(device="cpu", max_iter=1)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attention_data")
    digits.generate("digits", folder, counts={"train": 2, "val": 4, "test": 2})
    split = folder / "digits"
    register_coco_format(
        "attention_val", digits.annotation_file(split, "val"), digits.image_folder(split, "val")
    )
    return folder


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Makes the output directory of a training that has learnt nothing."""

    def make(name: str, config: Path, *overrides: str) -> Path:
        directory = tmp_path_factory.mktemp(name) / name
        directory.mkdir()
        cfg = load_config(config, ["train.device=cpu", *overrides])
        if config.suffix == ".py" and config.parent.name == "quickstart":
            LazyConfig.save(cfg, str(directory / "config.yaml"))
        section = cfg.model.student if "student" in cfg.model else cfg.model
        torch.manual_seed(len(name))
        torch.save({"model": instantiate(section).state_dict()}, directory / "student_final.pth")
        return directory

    return make


@pytest.fixture(scope="module")
def detectors(run_of) -> list[Path]:
    quickstart = ROOT / "configs" / "quickstart"
    # of the distillation the student alone: its teacher's file does not exist
    return [run_of("student", quickstart / "student.py"), run_of("mokd", quickstart / "mokd.py")]


def tool(data: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, TOOL, *map(str, arguments)], env=environment(DETECTRON2_DATASETS=data))


def colours(path: Path) -> int:
    return len(np.unique((imread(path)[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0))


def test_two_detectors_on_images_of_a_data_set_by_id(data, detectors, tmp_path):
    runs = [argument for run in detectors for argument in ("--run", run)]
    done = tool(
        data, "--ids", 2, 3, *runs, "--labels", "alone", "MoKD", "--output", tmp_path / "out", "--threshold", 0,
        "--max-objects", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pictures = [tmp_path / "out" / f"digits_val_{id_}.png" for id_ in (2, 3)]
    assert done.stdout.split() == list(map(str, pictures))
    assert all(colours(picture) > 1000 for picture in pictures)


def in_process(*arguments: object) -> int:
    return visualize_attention_tool.main([*map(str, arguments)])


@pytest.fixture
def folder(data, tmp_path) -> Path:
    """Two images of unequal size, a broken one and a text."""
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate(((64, 64), (90, 50))):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    (images / "broken.jpg").write_bytes(b"no picture")
    (images / "notes.txt").write_text("no picture either")
    return images


def test_a_folder_by_layers_with_an_image_that_cannot_be_read(data, detectors, folder, tmp_path, capsys):
    names = digits.annotation_file(data / "digits", "val")
    status = in_process(
        folder, "--run", detectors[0], "--view", "layers", "--threshold", 0, "--max-objects", 1,
        "--annotations", names, "--output", tmp_path / "out", "--smooth",
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 1
    assert f"not drawn: image {folder / 'broken.jpg'} " in said.err and "cannot be decoded" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]
    assert colours(tmp_path / "out" / "1.png") > 1000


def test_classifiers(run_of, detectors, folder, tmp_path, capsys):
    config = tmp_path / "classifier.py"
    config.write_text(f"BASE = {str(ROOT / 'configs' / 'quickstart' / 'student.py')!r}" + CLASSIFIER)
    small, large = run_of("small", config), run_of("large", config, "model.network.depth=3")
    assert (
        in_process(
            "--ids",
            3,
            1,
            "--model",
            config,
            small / "student_final.pth",
            "--output",
            tmp_path / "a",
        )
        == 0
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["class_attention.png"]
    assert colours(tmp_path / "a" / "class_attention.png") > 1000
    status = in_process(
        folder,
        "--model",
        config,
        small / "student_final.pth",
        "--view",
        "layers",
        "--output",
        tmp_path / "b",
    )
    assert status == 1 and "broken.jpg cannot be decoded" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["0.png", "1.png"]
    assert (
        in_process(
            "--ids",
            1,
            "--run",
            detectors[0],
            "--model",
            config,
            small / "student_final.pth",
            "--output",
            tmp_path / "c",
        )
        == 2
    )
    assert "detectors and classifiers cannot be drawn side by side" in capsys.readouterr().err
    # weights of another depth do not fit
    assert (
        in_process("--ids", 0, "--model", config, large / "student_final.pth", "--output", tmp_path / "c")
        == 2
    )
    assert "does not fit" in capsys.readouterr().err
    assert (
        in_process("--ids", 5, "--model", config, small / "student_final.pth", "--output", tmp_path / "c")
        == 2
    )
    assert "noise has no image at position 5; it has 5 images" in capsys.readouterr().err


def test_a_classifiers_part_of_an_image_is_shown_in_its_own_colours():
    from torchvision.transforms import v2

    module = visualize_attention_tool
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    transform = v2.Compose(
        [
            v2.CenterCrop(24),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.2, 0.3, 0.4]),
        ]
    )
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(module.visible_part(transform, image, transform(image)), pixels[8:32, 8:32])


def test_mistakes_are_one_line(data, detectors, folder, tmp_path, capsys):
    run, names = ["--run", detectors[0]], ["--annotations", digits.annotation_file(data / "digits", "val")]
    output = ["--output", tmp_path / "out"]
    other = tmp_path / "names.json"
    other.write_text(
        json.dumps({"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "one"}]})
    )
    for arguments, message in (
        ([*output, folder], "no model: give --run DIR, or --model CONFIG WEIGHTS"),
        ([*output, *run], "give either image files and folders, or --ids"),
        ([*output, *run, folder, "--ids", 1], "give either image files and folders, or --ids"),
        ([*output, *run, folder, "--dataset", "digits_val"], "--dataset is for --ids"),
        ([*output, *run, folder, "--threshold", 1.5], "--threshold is 1.5; it must be a score from 0 to 1"),
        ([*output, *run, folder, "--max-objects", 0], "--max-objects is 0; it must be 1 or more"),
        ([*output, *run, folder, "--labels", "a", "b"], "--labels gives 2 names for 1 models"),
        ([*output, *run, folder / "none.png"], f"there is no file or folder '{folder / 'none.png'}'"),
        ([*output, *run, folder / "notes.txt"], "notes.txt' is no image"),
        ([*output, "--run", folder, folder], "no config.yaml there, so this is no finished training"),
        ([*output, *run, folder, *names, "--set", "train.devise=cpu"], "train.devise"),
        (["--output", folder / "notes.txt", *run, folder, *names], "notes.txt' cannot be made"),
        (
            [*output, *run, "--ids", 9, "--dataset", "attention_val", *names],
            "no image id 9; it has 4 images, ids 1 to 4",
        ),
        ([*output, *run, folder, "--annotations", other], "the model predicts class"),
    ):
        assert in_process(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1, (arguments, error)


def test_other_models_are_one_clear_error(data, folder, run_of, tmp_path, capsys):
    config = tmp_path / "ssd.py"
    config.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large\n"
        "from mokd_det.modeling import TorchvisionDetector\n"
        "from mokd_det.data import DetrDatasetMapper, build_test_loader\n"
        "from detectron2.config import LazyConfig\n"
        f"base = LazyConfig.load({str(ROOT / 'configs' / 'quickstart' / 'student.py')!r})\n"
        "dataloader, optimizer, lr_multiplier = base.dataloader, base.optimizer, base.lr_multiplier\n"
        "objectives, balancer, train = base.objectives, base.balancer, base.train\n"
        "model = L(TorchvisionDetector)(detector=L(ssdlite320_mobilenet_v3_large)("
        "weights=None, weights_backbone=None, num_classes=11))\n"
    )
    run = run_of("ssd", config)
    names = digits.annotation_file(data / "digits", "val")
    status = in_process(
        folder,
        "--model",
        config,
        run / "student_final.pth",
        "--annotations",
        names,
        "--output",
        tmp_path / "out",
    )
    assert status == 2
    assert "error: TorchvisionDetector has no DET tokens" in capsys.readouterr().err
