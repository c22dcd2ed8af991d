"""What the pages presume that a reader has, made small, and what shortens their commands. Nothing else differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mokd_det.config import load_config
from mokd_det.data.digits import annotation_file, generate, image_folder
from tests.config_room.test_own_data import small
from tests.documentation.pages import ROOT
from tests.documentation.parsing import tool_of

COUNTS = {"train": 40, "val": 16, "test": 24}
CUSTOM = "configs/custom/mokd_vidt_nano.py"
_STEPS = ["train.max_iter=2", "train.eval_period=0", "train.log_period=1", "train.device=cpu"]
_PHOTOGRAPHS = [
    "data.total_batch_size=2",
    "dataloader.train.mapper.augmentation.short_sides=[64]",
    "dataloader.test.mapper.augmentation.short_side=64",
]
# Configuration → what makes its training small, beside _STEPS.
_SMALL = {
    CUSTOM: small("model.student", "model.teacher"),
    "configs/photographs/teacher.py": _PHOTOGRAPHS,
    "configs/photographs/mokd.py": _PHOTOGRAPHS,
    "configs/photographs/forty_labels.py": ["dataloader.train.draw.count=16"],
    "configs/photographs/d_fine.py": ["data.total_batch_size=2", "images.side=64"],
    "configs/photographs/rt_detr_v2.py": ["data.total_batch_size=2", "images.side=64"],
}
# Command → the status with which it ends, if not 0.
STATUS = {"optimizer.lr=1e20": 2}


def shortened(words: list[str]) -> list[str]:
    """A command with arguments that make it short; later ones go before earlier ones in every parser."""
    tool, arguments = tool_of(words) or ("", [])
    words = list(words)
    if tool in ("train_net", "submit"):
        config = arguments[arguments.index("--config-file") + 1]
        # A student's evaluation has no teacher to make small.
        extra = [s for s in _SMALL.get(config, []) if not ("--eval-only" in words and "teacher" in s)]
        return [*words, *_STEPS, *extra]
    if tool == "make_digits":
        return [*words, *(part for split, n in COUNTS.items() for part in (f"--{split}", str(n)))]
    if tool == "quickstart":
        teacher = ["--teacher-iterations", "2"] if "classification" in words else []
        return [*words, "--iterations", "2", "--images", "40", "--jobs", "1", "--seeds", "0", *teacher]
    if tool == "compare_methods" and "--records" not in words:
        config = words[words.index("--config") + 1]
        first = words.index("--methods") + 1
        last = next(i for i in range(first, len(words) + 1) if i == len(words) or words[i].startswith("--"))
        words[first:last] = [words[first], words[last - 1]]
        for option in ("--draw", "--teacher-draw"):
            if option in words:
                words[words.index(option) + 1] = "16"
        settings = [*_STEPS, "train.eval_period=2", *_SMALL.get(config, [])]
        if "--set" in words:
            place = words.index("--set") + 1
            words[place:place] = settings
        else:
            words += ["--set", *settings]
        if "--teacher-config" in words:
            words += ["--teacher-set", *_STEPS]
        return [*words, "--replicates", "2", "--jobs", "1"]
    if tool == "analyze_model" and "--all-variants" not in words:
        size = [] if "--size" in words else ["--size", "64", "64"]
        return [*words, *size, "--batch-size", "1", "--warmup", "0", "--repeats", "1"]
    if tool == "report":
        return [*words, "--images", "4", "--pictures", "2"]
    return words


def status(words: list[str]) -> int:
    """With which status a command ends."""
    return next((code for text, code in STATUS.items() if text in words), 0)


@contextmanager
def catalogs_restored() -> Iterator[None]:
    """Data sets that are registered inside are forgotten."""
    before = [(catalog, set(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    try:
        yield
    finally:
        for catalog, known in before:
            for name in set(catalog.data) - known:
                catalog.data.pop(name)


def make_own_data(folder: Path) -> None:
    """Generated scenes where the pages have photographs of the reader's, or fetched ones: images beside JSON files."""
    generate("digits", folder / "made", counts={"train": 20, "val": 4, "test": 4})
    digits = folder / "made" / "digits"
    bccd = folder / "datasets" / "bccd"
    for target in (folder / "data" / "bccd", bccd, folder / "screws", folder / "birds"):
        (target / "images").mkdir(parents=True)
        for split in ("train", "val", "test"):
            content = json.loads(annotation_file(digits, split).read_text())
            for image in content["images"]:
                source = image_folder(digits, split) / image["file_name"]
                image["file_name"] = f"{split}_{image['file_name']}"
                shutil.copy(source, target / "images" / image["file_name"])
            (target / f"{split}.json").write_text(json.dumps(content))
    shutil.rmtree(folder / "made")
    # docs/results.md makes it of two splits.
    shutil.copy(bccd / "val.json", bccd / "val_test.json")
    for split, count in (("train", 20), ("test", 2)):
        for label in range(10):
            images = folder / "datasets" / "cifar10_jpeg" / split / str(label)
            images.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (20 * label, 10 * number, 0)).save(images / f"{number}.jpg")


def make_place(folder: Path) -> None:
    """The checkout's programs and configs, the reader's data and the published weights that pages name."""
    for name in ("tools", "configs", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "datasets").mkdir(exist_ok=True)
    for program in (ROOT / "datasets").glob("*.py"):
        (folder / "datasets" / program.name).symlink_to(program)
    make_own_data(folder)

    (folder / "checkpoints").mkdir()
    own = [f"data.train.json={folder}/screws/train.json", f"data.train.images={folder}/screws/images"]
    config = load_config(CUSTOM, [*_SMALL[CUSTOM], *own, "data.val=null", "model.teacher_checkpoint="])
    for name, model in (("vidt_base_50", config.model.teacher), ("vidt_nano_50", config.model.student)):
        weights = instantiate(model).state_dict()
        torch.save({"model": weights}, folder / "checkpoints" / f"{name}.pth")
