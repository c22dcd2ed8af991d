"""tools/demo.py, by its real entry point, on images, folders, videos and a stream."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from matplotlib.image import imread
from PIL import Image
from pycocotools.coco import COCO

from mokd_det.config import load_config
from mokd_det.data import digits
from mokd_det.data.frames import VideoWriter, open_video
from mokd_det.tools import demo as demo_tool
from tests.forks import environment
from tests.forks import run as run_program

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart"

OTHER_MODELS = """
from detectron2.config import LazyCall as L, LazyConfig
from detectron2.data import DatasetMapper, transforms as T
from detectron2 import model_zoo
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from mokd_det.modeling import TorchvisionDetector
from mokd_det.data import DetrDatasetMapper, build_test_loader

base = LazyConfig.load(BASE)
optimizer, lr_multiplier, balancer = base.optimizer, base.lr_multiplier, base.balancer
objectives, train = base.objectives, base.train
dataloader = dict(train=base.dataloader.train)
train.device = "cpu"
"""

TORCHVISION = """
dataloader["test"] = L(build_test_loader)(
    dataset="coco_2017_val", mapper=L(DetrDatasetMapper)(is_train=False, augmentation=[]))
model = L(TorchvisionDetector)(
    detector=L(ssdlite320_mobilenet_v3_large)(weights=None, weights_backbone=None, num_classes=81))
"""

DETECTRON2 = """
from configs.common.detectron2_models import retinanet
dataloader["test"] = L(build_test_loader)(dataset="coco_2017_val", mapper=L(DatasetMapper)(
    is_train=False, augmentations=[L(T.ResizeShortestEdge)(short_edge_length=96, max_size=128)], image_format="BGR"))
model = retinanet(depth=18)
model.test_score_thresh, model.max_detections_per_image = 0.0, 5
"""


@pytest.fixture(scope="module")
def demo():
    return demo_tool


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Digits and the names of their classes, in a data root of its own."""
    folder = tmp_path_factory.mktemp("demo_data")
    digits.generate("digits", folder, counts={"train": 2, "val": 3, "test": 3})
    return folder


@pytest.fixture(scope="module")
def names(data) -> Path:
    return digits.annotation_file(data / "digits", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a distillation that has learnt nothing leaves: its teacher's file does not exist any more."""
    directory = tmp_path_factory.mktemp("demo_run") / "mokd"
    directory.mkdir()
    cfg = load_config(QUICKSTART / "mokd.py", ["train.device=cpu"])
    LazyConfig.save(cfg, str(directory / "config.yaml"))
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model.student).state_dict()}, directory / "student_final.pth")
    return directory


def model_of(text: str, folder: Path) -> list[Path]:
    """Config and random weights."""
    config, weights = folder / "config.py", folder / "weights.pth"
    config.write_text(f"BASE = {str(QUICKSTART / 'student.py')!r}\n" + OTHER_MODELS + text)
    torch.manual_seed(0)
    torch.save({"model": instantiate(load_config(config).model).state_dict()}, weights)
    return [config, weights]


def write_video(path: Path, frames: int = 6, size: tuple[int, int] = (80, 48)) -> Path:
    """A square that moves to the right, at 10 frames per second."""
    with VideoWriter(path, 10.0) as writer:
        for i in range(frames):
            frame = np.full((size[1], size[0], 3), 40, np.uint8)
            frame[10:30, 10 * i : 10 * i + 20] = (250, 60, 20)
            writer.write(frame)
    return path


def read_back(path: Path) -> list[np.ndarray]:
    return list(open_video(path).frames())


def results(folder: Path) -> tuple[list[dict], dict]:
    return json.loads((folder / "detections.json").read_text()), json.loads(
        (folder / "images.json").read_text()
    )


def call(demo, *arguments: object) -> int:
    return demo.main([*map(str, arguments)])


def test_a_folder_as_a_user_runs_it(data, run, tmp_path):
    images = digits.image_folder(data / "digits", "test")
    command = [sys.executable, ROOT / "tools" / "demo.py", images, "--run", run, "--output", tmp_path / "out"]
    done = run_program([*command, "--threshold", "0"], env=environment(DETECTRON2_DATASETS=data))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"150 detections in 3 images: {tmp_path / 'out'}\n"
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [*sorted(path.name for path in images.iterdir()), "detections.json", "images.json"]
    assert imread(tmp_path / "out" / written[0]).shape[:2] == (512, 512)  # 64 pixels, enlarged to be readable


def test_the_results_are_the_models_and_fit_the_annotation_file(demo, data, names, run, tmp_path, capsys):
    images = digits.image_folder(data / "digits", "test")
    files = sorted(images.iterdir())
    arguments = ["--run", run, "--annotations", names, "--threshold", 0, "--output", tmp_path, "--no-drawing"]
    # one file apart and not in the order of the ids; it comes first, and once
    assert call(demo, files[2], images, *arguments) == 0
    found, listed = results(tmp_path)
    truth = json.loads(names.read_text())
    ids = {row["file_name"]: row["id"] for row in truth["images"]}
    assert [row["id"] for row in listed["images"]] == [ids[files[i].name] for i in (2, 0, 1)]
    assert [row["name"] for row in listed["categories"]] == [row["name"] for row in truth["categories"]]
    assert listed["unread"] == [] and listed["threshold"] == 0
    loaded = demo.load_inference_model(run / "config.yaml", run / "student_final.pth", ["train.device=cpu"])
    record = {"file_name": str(files[2]), "image_id": 1, "height": 64, "width": 64}
    with torch.no_grad():
        instances = loaded.model([loaded.build_mapper()(record)])[0]["instances"]
    mine = [row for row in found if row["image_id"] == ids[files[2].name]]
    assert len(mine) == len(instances) == 50
    category = sorted(row["id"] for row in truth["categories"])
    for row, box, score, label in zip(
        mine,
        instances.pred_boxes.tensor.tolist(),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        strict=True,
    ):
        assert row["bbox"] == pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]], abs=1e-6)
        assert (row["score"], row["category_id"]) == (pytest.approx(score), category[label])
    # the official code reads them
    coco = COCO(str(names))
    assert len(coco.loadRes(str(tmp_path / "detections.json")).anns) == 150


def test_the_threshold_holds_for_the_file(demo, data, names, run, tmp_path):
    images = digits.image_folder(data / "digits", "test")
    arguments = [images, "--run", run, "--annotations", names, "--no-drawing"]
    assert call(demo, *arguments, "--threshold", 0, "--output", tmp_path / "all") == 0
    scores = sorted(row["score"] for row in results(tmp_path / "all")[0])
    middle = scores[len(scores) // 2]
    assert call(demo, *arguments, "--threshold", middle, "--output", tmp_path / "half") == 0
    kept = [row["score"] for row in results(tmp_path / "half")[0]]
    assert len(kept) == sum(score >= middle for score in scores) < len(scores)
    assert call(demo, *arguments, "--threshold", 1, "--output", tmp_path / "none") == 0
    assert results(tmp_path / "none")[0] == []


def test_what_cannot_be_read_is_named_and_the_rest_done(demo, names, run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(folder / "good.png")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        whole, "JPEG"
    )
    (folder / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("not asked for")
    status = call(
        demo, folder, "--run", run, "--annotations", names, "--threshold", 0, "--output", tmp_path / "out"
    )
    said = capsys.readouterr().err
    assert status == 1
    assert f"not read: image {folder / 'cut.jpg'} cannot be decoded" in said
    assert f"not read: video {folder / 'empty.mp4'} cannot be decoded" in said
    found, listed = results(tmp_path / "out")
    assert [row["file_name"] for row in listed["images"]] == [str(folder / "good.png")]
    assert len(listed["unread"]) == 2 and len(found) == 50
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "detections.json",
        "good.png",
        "images.json",
    ]


@pytest.mark.parametrize("kind", ["mp4", "webm", "avi"])
def test_a_video_becomes_a_playable_video(demo, names, run, tmp_path, kind):
    clip = write_video(tmp_path / "clip.mp4")
    arguments = ["--run", run, "--annotations", names, "--threshold", 0.5, "--video", kind]
    assert call(demo, clip, *arguments, "--output", tmp_path / "out", "--scale", 2) == 0
    drawn, given = read_back(tmp_path / "out" / f"clip.{kind}"), read_back(clip)
    assert len(drawn) == len(given) == 6
    source = open_video(tmp_path / "out" / f"clip.{kind}")
    assert (source.size, source.rate) == ((160, 96), pytest.approx(10.0, abs=0.01))
    for before, after in zip(given, drawn, strict=True):
        # nothing was found above the threshold, so it is the same video, enlarged
        assert np.abs(after[::2, ::2].astype(int) - before).mean() < 12
    _, listed = results(tmp_path / "out")
    assert [(row["id"], row["frame"], row["width"]) for row in listed["images"]] == [
        (4 + i, i, 80) for i in range(6)
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"clip.{kind}",
        "detections.json",
        "images.json",
    ]


def test_frames_are_looked_at_as_images_are(demo, names, run, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", frames=3)
    for number, frame in enumerate(read_back(clip)):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    common = ["--run", run, "--annotations", names, "--threshold", 0, "--no-drawing"]
    assert call(demo, clip, *common, "--output", tmp_path / "video") == 0
    assert (
        call(demo, *(tmp_path / f"frame{i}.png" for i in range(3)), *common, "--output", tmp_path / "images")
        == 0
    )
    assert results(tmp_path / "video")[0] == results(tmp_path / "images")[0]


def test_the_number_of_frames_can_be_limited(demo, names, run, tmp_path):
    clip = write_video(tmp_path / "clip.mp4")
    arguments = ["--run", run, "--annotations", names, "--max-frames", 2, "--output", tmp_path / "out"]
    assert call(demo, clip, *arguments) == 0
    assert len(read_back(tmp_path / "out" / "clip.mp4")) == 2


def test_a_truncated_video_is_named(demo, names, run, tmp_path, capsys):
    clip = write_video(tmp_path / "clip.avi", frames=40)
    content = clip.read_bytes()
    # the header still announces 40 frames
    clip.write_bytes(content[: len(content) * 2 // 3])
    arguments = ["--run", run, "--annotations", names, "--no-drawing", "--output", tmp_path / "out"]
    assert call(demo, clip, *arguments) == 1
    looked_at = len(results(tmp_path / "out")[1]["images"])
    assert 10 <= looked_at < 40
    assert f"{looked_at} frames could be decoded, it announces 40" in capsys.readouterr().err


def test_a_stream_runs_until_its_end_or_an_interruption(demo, names, run, tmp_path, monkeypatch, capsys):
    stream = write_video(tmp_path / "stream.mp4")
    arguments = ["--camera", stream, "--run", run, "--annotations", names, "--threshold", 0]
    assert call(demo, *arguments, "--output", tmp_path / "whole", "--no-drawing") == 0
    assert len(results(tmp_path / "whole")[1]["images"]) == 6
    look_at, calls = demo.Session.look_at, []

    def interrupted(self, *values):
        calls.append(values)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return look_at(self, *values)

    monkeypatch.setattr(demo.Session, "look_at", interrupted)
    # A frame takes 0.15 s here; a fast machine would leave frames out.
    clock = partial(next, count(0.0, 0.15))
    monkeypatch.setattr(demo, "VideoWriter", partial(VideoWriter, clock=clock))
    assert call(demo, *arguments, "--output", tmp_path / "part") == 0
    found, listed = results(tmp_path / "part")
    assert len(listed["images"]) == 3 and len(found) == 150
    assert len(read_back(tmp_path / "part" / "camera.mp4")) == 5
    assert "stopped" in capsys.readouterr().err


def test_an_interrupted_folder_is_not_taken_for_a_whole_one(
    demo, data, names, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        demo.Session, "look_at", lambda self, *values: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    images = digits.image_folder(data / "digits", "test")
    assert call(demo, images, "--run", run, "--annotations", names, "--output", tmp_path) == 1
    assert results(tmp_path)[1]["unread"] == ["everything after the interruption"]


def test_a_torchvision_detector_with_cocos_names(demo, data, tmp_path):
    (image, *_) = sorted(digits.image_folder(data / "digits", "test").iterdir())
    # COCO's classes are known to Detectron2 without any file
    arguments = ["--model", *model_of(TORCHVISION, tmp_path), "--threshold", 0, "--output", tmp_path / "out"]
    assert call(demo, image, *arguments, "--no-drawing") == 0
    found, listed = results(tmp_path / "out")
    assert found and {row["category_id"] for row in found} <= {row["id"] for row in listed["categories"]}
    assert len(listed["categories"]) == 80 and listed["categories"][-1] == {"id": 90, "name": "toothbrush"}


def test_a_detectron2_detector(demo, data, tmp_path):
    (image, *_) = sorted(digits.image_folder(data / "digits", "test").iterdir())
    arguments = ["--model", *model_of(DETECTRON2, tmp_path), "--threshold", 0, "--output", tmp_path / "out"]
    assert call(demo, image, *arguments) == 0
    found, _ = results(tmp_path / "out")
    assert found and all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= 64.001 for row in found)
    assert (tmp_path / "out" / f"{image.stem}.png").is_file()


def test_mistakes_are_one_line(demo, data, names, run, tmp_path, capsys):
    images = digits.image_folder(data / "digits", "test")
    output, model = ["--output", tmp_path / "out"], ["--run", run]
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    one = tmp_path / "one.json"
    one.write_text(
        json.dumps({"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "one"}]})
    )
    classifier = tmp_path / "no_mapper.py"
    classifier.write_text(
        f"from detectron2.config import LazyConfig\ncfg = LazyConfig.load({str(QUICKSTART / 'student.py')!r})\n"
        "globals().update({k: cfg[k] for k in cfg})\ndel cfg\ndataloader.test = dataloader.evaluator = None\n"
    )
    for arguments, message in (
        ([*output, images], "no model: give --run DIR"),
        ([*output, *model, *model, images], "--run and --model name 2 models; give one"),
        ([*output, *model], "give either files and folders, or --camera"),
        ([*output, *model, images, "--camera", 0], "give either files and folders, or --camera"),
        ([*output, *model, "--camera", 97], "camera '97' cannot be opened; this machine has"),
        ([*output, *model, tmp_path / "none.mp4"], f"there is no file or folder '{tmp_path / 'none.mp4'}'"),
        ([*output, *model, tmp_path / "notes.txt"], "notes.txt' is no image or video, going by its name"),
        ([*output, *model, tmp_path / "empty"], "has no image or video directly in it"),
        ([*output, *model, images, "--threshold", -1], "--threshold is -1.0"),
        ([*output, *model, images, "--max-frames", 0], "--max-frames is 0; it must be 1 or more"),
        ([*output, *model, images, "--annotations", one, "--threshold", 0], "has 1 classes"),
        ([*output, *model, images, "--annotations", tmp_path / "none.json"], "none.json"),
        ([*output, "--model", QUICKSTART / "teacher.py", run / "student_final.pth", images], "does not fit"),
        (
            [*output, "--model", classifier, run / "student_final.pth", images],
            "has no dataloader.test.mapper",
        ),
        (
            ["--output", tmp_path / "notes.txt", *model, images, "--annotations", names],
            "notes.txt' cannot be made",
        ),
    ):
        assert call(demo, *arguments) == 2, arguments
        error = capsys.readouterr().err
        last = error.splitlines()[-1]
        assert last.startswith("error: ") and message in last, (arguments, error)
        assert "Traceback" not in error


def test_a_failure_leaves_no_half_files(demo, names, run, tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.mp4")
    look_at, calls = demo.Session.look_at, []

    def failing(self, *values):
        calls.append(values)
        if len(calls) == 3:
            raise ZeroDivisionError
        return look_at(self, *values)

    monkeypatch.setattr(demo.Session, "look_at", failing)
    with pytest.raises(ZeroDivisionError):
        call(demo, clip, "--run", run, "--annotations", names, "--output", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
