"""Long runs, large data sets, odd images: memory stays flat, times stay bounded, nothing falls over.

``MOKD_SOAK_ITERATIONS`` shortens the soak (default 5000).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mokd_det.checkpoint import load_file
from mokd_det.data import DatasetReport, check_dataset, digits, register_coco_format
from mokd_det.data.coco_format import CocoFormatSource
from tests.data_room.conftest import clean_catalogs  # noqa: F401
from tests.engine.test_train_net import CONFIG, ROOT, metrics, run_here
from tests.forks import environment, run

SOAK_ITERATIONS = int(os.environ.get("MOKD_SOAK_ITERATIONS", "5000"))


class Figures:
    """What ``recorded_run`` has written down: memory and seconds of every step."""

    def __init__(self, root: Path, *arguments: str) -> None:
        """Train with ``arguments``; the data sets are those in ``root / "datasets"``, if any."""
        file = root / "figures.json"
        command = [sys.executable, "-m", "tests.reliability.recorded_run", str(file), *arguments]
        done = run(command, cwd=ROOT, env=environment(DETECTRON2_DATASETS=root / "datasets"), timeout=7200)
        assert done.returncode == 0, done.stderr[-3000:]
        figures = json.loads(file.read_text())
        self.seconds: list[float] = figures["seconds"]
        self.memory: list[int] = figures["memory"]

    def slope(self, skip: float = 0.3) -> float:
        """Bytes per iteration, by least squares, after the first part (caches fill, the allocator settles)."""
        values = np.array(self.memory[int(len(self.memory) * skip) :], dtype=np.float64)
        return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def test_a_short_soak_of_the_toy(tmp_path):
    figures = Figures(
        tmp_path,
        "--config-file",
        str(CONFIG),
        f"train.output_dir={tmp_path / 'run'}",
        "train.max_iter=600",
        "train.eval_period=0",
        "train.checkpointer.period=100",
    )
    assert len(figures.memory) == 600
    assert figures.slope() < 8_000, "more than 40 MB would be lost in 5000 iterations"


@pytest.mark.slow
def test_a_long_soak_of_the_quick_start(tmp_path, capsys):
    """The main job: a ViDT student with MoKD from a teacher; the teacher's weights do not matter here."""
    digits.generate("digits", tmp_path / "datasets", counts={"train": 64, "val": 4, "test": 4})
    configs = ROOT / "configs" / "quickstart"
    arguments = ("dataloader.train.total_batch_size=2", "train.eval_period=0")
    Figures(
        tmp_path,
        "--config-file",
        str(configs / "teacher.py"),
        f"train.output_dir={tmp_path / 'teacher'}",
        "train.max_iter=1",
        *arguments,
    )
    figures = Figures(
        tmp_path,
        "--config-file",
        str(configs / "mokd.py"),
        f"train.output_dir={tmp_path / 'run'}",
        f"model.teacher_checkpoint={tmp_path / 'teacher' / 'student_final.pth'}",
        f"train.max_iter={SOAK_ITERATIONS}",
        *arguments,
    )
    quarter = SOAK_ITERATIONS // 4
    early, late = (
        statistics.median(part)
        for part in (figures.seconds[quarter : 2 * quarter], figures.seconds[-quarter:])
    )
    with capsys.disabled():
        print(
            f"\nsoak: {SOAK_ITERATIONS} iterations, {figures.slope():.0f} bytes per iteration, median step "
            f"{early * 1e3:.1f} ms of CPU time in the second quarter, {late * 1e3:.1f} ms in the last, peak "
            f"{max(figures.memory) / 2**20:.0f} MiB"
        )
    assert figures.slope() * SOAK_ITERATIONS < 64 * 2**20
    assert late < 1.5 * early


LARGE = """
import json, resource, sys, time
from mokd_det.data.coco_format import CocoFormatSource, load_coco_format
from mokd_det.data import check_dataset
from mokd_det.data.catalog import load_dataset_dicts
json_file, image_root, what = sys.argv[1:]
source = CocoFormatSource(None, json_file, image_root)
start = time.perf_counter()
if what == "check":
    report = check_dataset(source, image_check="list")
    found = [report.errors, report.statistics.images, report.statistics.boxes]
else:
    from detectron2.data.common import DatasetFromList
    records = DatasetFromList(load_coco_format(source), copy=False, serialize=True)
    found = [0, len(records), sum(len(records[i]["annotations"]) for i in range(0, len(records), 1000)) * 1000]
print(json.dumps({
    "found": found,
    "seconds": time.perf_counter() - start,
    "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def write_large(root: Path, images: int, boxes_per_image: int) -> tuple[Path, Path]:
    """A file of many images; they share a thousand image files, as the files are not what is large here."""
    folder = root / "images"
    folder.mkdir(parents=True)
    for number in range(1000):
        (folder / f"{number}.png").touch()
    rng = np.random.default_rng(0)
    with open(root / "large.json", "w") as file:
        file.write('{"categories": ' + json.dumps([{"id": i, "name": f"class {i}"} for i in range(1, 81)]))
        file.write(', "images": [')
        for number in range(images):
            entry = {"id": number, "file_name": f"{number % 1000}.png", "width": 640, "height": 480}
            file.write((", " if number else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for number in range(images):
            numbers = rng.integers(1, 200, (boxes_per_image, 4)).tolist()
            for index, box in enumerate(numbers):
                id_ = number * boxes_per_image + index
                entry = {
                    "id": id_,
                    "image_id": number,
                    "category_id": 1 + id_ % 80,
                    "bbox": box,
                    "iscrowd": 0,
                }
                file.write((", " if id_ else "") + json.dumps(entry))
        file.write("]}")
    return root / "large.json", folder


def measure(json_file: Path, folder: Path, what: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LARGE, str(json_file), str(folder), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_million_boxes(tmp_path, capsys):
    json_file, folder = write_large(tmp_path, 200_000, 10)
    for what in ("check", "load"):
        found = measure(json_file, folder, what)
        with capsys.disabled():
            print(
                f"\n200,000 images, 2,000,000 boxes, {json_file.stat().st_size / 2**20:.0f} MiB of JSON: "
                f"{what} in {found['seconds']:.1f} s, peak {found['mib']:.0f} MiB"
            )
        assert found["found"] == [0, 200_000, 2_000_000]
        assert found["mib"] < 6_000
        assert found["seconds"] < 600


def write_odd_images(root: Path) -> Path:
    """Images of 1×1, 1×2000, 2000×1 and 4000×4000 pixels, and one with far more objects than queries."""
    (root / "images").mkdir(parents=True)
    sizes = {"dot": (1, 1), "row": (2000, 1), "column": (1, 2000), "huge": (4000, 4000), "crowd": (128, 128)}
    images, annotations = [], []
    for number, (name, (width, height)) in enumerate(sizes.items(), 1):
        Image.new("RGB", (width, height), (number * 40, 90, 200)).save(root / "images" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": width, "height": height})
        boxes = [[0, 0, width, height]]
        if name == "crowd":
            boxes = [[x, y, 5, 5] for x in range(0, 120, 8) for y in range(0, 120, 8)]
        for box in boxes:
            place = {"id": len(annotations), "image_id": number, "category_id": 1 + len(annotations) % 10}
            annotations.append({**place, "bbox": box, "iscrowd": 0})
    categories = [{"id": number, "name": str(number)} for number in range(1, 11)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "odd.json").write_text(json.dumps(content))
    return root / "odd.json"


@pytest.mark.usefixtures("clean_catalogs")
def test_odd_and_crowded_images_train_and_evaluate(tmp_path):
    json_file = write_odd_images(tmp_path)
    register_coco_format("odd_images", json_file, tmp_path / "images")
    report: DatasetReport = check_dataset(CocoFormatSource(None, str(json_file), str(tmp_path / "images")))
    assert report.errors == 0 and [problem.kind for problem in report.problems] == ["crowded-image"]
    run_here(
        tmp_path / "run",
        "--config-file",
        str(Path(__file__).with_name("odd_images_config.py")),
        "train.max_iter=5",
        "train.log_period=1",
    )
    losses = [line["total_loss"] for line in metrics(tmp_path / "run") if "total_loss" in line]
    assert len(losses) == 5 and np.isfinite(losses).all()
    assert any("bbox/AP" in line for line in metrics(tmp_path / "run"))
    weights = load_file(tmp_path / "run" / "student_final.pth")["model"]
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())
