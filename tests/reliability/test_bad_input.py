"""One message for every mistake, through the tools themselves, and nothing written over it.

Each row of the tables is a mistake, made in otherwise good input, and a part of the one line that says so.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mokd_det.checkpoint import load_into
from mokd_det.config import load_config
from mokd_det.data import CocoFormatSource, DetrDatasetMapper, build_train_loader, check_dataset
from mokd_det.engine import launch as launch_function
from mokd_det.errors import ConfigError, DatasetError, MoKDError
from mokd_det.evaluation.detection_file import read_detections
from mokd_det.visualization.run_metrics import read_run
from tests.data_room.conftest import CONTENT, clean_catalogs, coco_files  # noqa: F401
from tests.engine.test_train_net import CONFIG, ROOT, run_here
from tests.engine.toy import ToyDetector

OWN_DATA = ROOT / "configs" / "custom" / "vidt_nano.py"
RECORD_OF_A_RUN = {"config.yaml", "environment.txt", "log.txt"}
"""What a run writes before it reads data and weights: a record of what was asked for."""


def refused(
    capsys: pytest.CaptureFixture[str], output: Path, *arguments: str, written: set[str] = frozenset()
) -> str:
    """Run the training tool; it must end with status 2, one line, and no file but ``written``."""
    assert launch_function(run_here, args=(output, *arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert not [line for line in lines if line.startswith("Traceback")]
    found = {item.name for item in output.iterdir()} if output.exists() else set()
    assert found <= written, found
    return errors[0]


# --- configurations and overrides -------------------------------------------------------------------------------------

OVERRIDES = {
    "unknown key of train": (
        "train.max_itr=3",
        "unknown config key 'train.max_itr'; did you mean 'train.max_iter'?",
    ),
    "unknown section": ("optimiser.lr=1", "unknown config key 'optimiser'; did you mean 'optimizer'?"),
    "key of another section": ("lr=0.1", "unknown config key 'lr'; did you mean 'optimizer.lr'?"),
    "unknown argument of a call": ("model.widths=3", "did you mean 'model.width'?"),
    "unknown key in a mapping": ("train.non_finite={polcy: skip}", "did you mean 'train.non_finite.policy'?"),
    "a number is a word": ("train.max_iter=many", "train.max_iter is 12 (int), not of type str"),
    "a number is null": ("train.seed=null", "train.seed is 0 (int) and cannot be null"),
    "a number is a list": ("optimizer.lr=[1]", "optimizer.lr is 0.01 (float), not of type list"),
    "a switch is a number": ("train.amp.enabled=1", "train.amp.enabled is False (bool), not of type int"),
    "a section is a number": ("train=3", "train is a mapping, not of type int"),
    "a key below a number": ("train.seed.x=3", "train.seed is 0 (int) and has no keys"),
    "no equals sign": ("train.max_iter", "is not of the form key.path=value"),
    "an addition": ("+train.x=1", "only key.path=value is supported"),
    "a deletion": ("~train.seed", "only key.path=value is supported"),
    "several values": ("train.seed=1,2", "only key.path=value is supported"),
    "an unclosed bracket": ("train.best={metric: a", "is not of the form key.path=value"),
    "no iterations": ("train.max_iter=0", "train.max_iter is 0; it must be 1 or more"),
    "negative iterations": ("train.max_iter=-5", "train.max_iter is -5; it must be 1 or more"),
    "negative seed": ("train.seed=-1", "train.seed is -1; it must be 0 or more"),
    "no accumulation": ("train.accumulate=0", "train.accumulate is 0; it must be 1 or more"),
    "no directory": ("train.output_dir=''", "train.output_dir is ''; it must be a directory"),
    "unknown device": ("train.device=tpu", "train.device is 'tpu'; it must be 'auto', 'cuda' or 'cpu'"),
    "unknown precision": ("train.amp.dtype=int8", "train.amp.dtype is 'int8'"),
    "no clipping norm": ("train.clip_grad.max_norm=0", "train.clip_grad.max_norm is 0.0; it must be above 0"),
    "unknown policy": (
        "train.non_finite.policy=ignore",
        "train.non_finite.policy is 'ignore'; it must be 'stop' or",
    ),
    "negative skips": (
        "train.non_finite.max_skips=-1",
        "train.non_finite.max_skips is -1; it must be 0 or more",
    ),
    "checkpoints without period": ("train.checkpointer.period=0", "train.checkpointer.period is 0"),
    "unknown best mode": ("train.best={mode: most}", "train.best.mode is 'most'; it must be 'max' or 'min'"),
    "unknown callable": ("balancer={_target_: mokd_det.balancing.Nope}", "which cannot be imported"),
    "a callable of another world": ("balancer={_target_: nope.nope}", "which cannot be imported"),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_overrides(case, tmp_path, capsys):
    override, message = OVERRIDES[case]
    assert message in refused(capsys, tmp_path / "out", override)


CONFIG_FILES = {
    "missing": (None, "does not exist"),
    "syntax": ("train = dict(", "fails with SyntaxError"),
    "unknown name": ("train = nothing", "fails with NameError: name 'nothing' is not defined"),
    "unknown import": ("import nothing_of_this_name", "fails with ModuleNotFoundError"),
    "empty": ("", "does not define 'model'"),
    "without optimizer": ("model = dataloader = train = dict()\n", "does not define 'optimizer'"),
    "a byte order mark": ("\ufefftrain = 1", "it is saved with a byte order mark; save it as UTF-8 without"),
    "null bytes": ("train = 1\x00", "fails with "),
    "division by zero": ("x = 1 / 0", "fails with ZeroDivisionError"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_config_files(case, tmp_path, capsys):
    text, message = CONFIG_FILES[case]
    if text is not None:
        (tmp_path / "config.py").write_text(text)
    assert message in refused(capsys, tmp_path / "out", "--config-file", str(tmp_path / "config.py"))


# --- annotations, through the configuration for a user's own data -----------------------------------------------------

Damage = Callable[[dict[str, Any]], Any]


def _image(**changes: Any) -> Damage:
    return lambda content: content["images"][0].update(changes)


def _annotation(**changes: Any) -> Damage:
    return lambda content: content["annotations"][0].update(changes)


ANNOTATIONS: dict[str, tuple[Damage, str]] = {
    "no images": (lambda c: c.pop("images"), "the key 'images' is missing"),
    "no categories": (lambda c: c.pop("categories"), "the key 'categories' is missing"),
    "no annotations": (lambda c: c.pop("annotations"), "the key 'annotations' is missing"),
    "images are a mapping": (lambda c: c.update(images={}), "'images' is a dict, not a list"),
    "empty images": (lambda c: c.update(images=[]), "'images' is empty"),
    "empty categories": (lambda c: c.update(categories=[]), "'categories' is empty"),
    "an image without id": (lambda c: c["images"][0].pop("id"), "image number 0 of the list has no 'id'"),
    "an image id twice": (_image(id=10), "the image id 10 occurs twice"),
    "an image id of text": (_image(id="a"), "id='a'; must be an integer"),
    "an image without file": (lambda c: c["images"][0].pop("file_name"), "has no 'file_name'"),
    "an image without width": (lambda c: c["images"][0].pop("width"), "has no 'width'"),
    "a height of zero": (_image(height=0), "has height 0; must be > 0"),
    "a negative width": (_image(width=-4), "has width -4; must be > 0"),
    "a file that is not there": (_image(file_name="gone.png"), "gone.png (image id 20) does not exist"),
    "a file outside": (_image(file_name="../x.png"), "leads out of the image folder"),
    "an absolute file": (_image(file_name="/etc/hostname"), "leads out of the image folder"),
    "a category without name": (lambda c: c["categories"][0].pop("name"), "has no 'name'"),
    "a category id twice": (lambda c: c["categories"][0].update(id=3), "the category id 3 occurs twice"),
    "a category name twice": (lambda c: c["categories"][0].update(name="ant"), "name 'ant' occurs twice"),
    "an annotation id twice": (_annotation(id=2), "the annotation id 2 occurs twice"),
    "an unknown image": (
        _annotation(image_id=99),
        "annotation id 1 belongs to image id 99, which 'images' lacks",
    ),
    "an unknown class": (
        _annotation(category_id=4),
        "has category_id 4, which is not in 'categories' ([3, 7])",
    ),
    "a class of text": (_annotation(category_id="cat"), "has category_id='cat'; must be an integer"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 has no 'bbox'"),
    "a box of three": (_annotation(bbox=[1, 2, 3]), "has bbox [1, 2, 3]; must be four numbers"),
    "a box of text": (_annotation(bbox="1,2,3,4"), "must be four numbers [x, y, w, h]"),
    "a box with NaN": (_annotation(bbox=[0, 0, float("nan"), 4]), "its numbers must be finite"),
    "a box with infinity": (_annotation(bbox=[0, float("inf"), 3, 4]), "its numbers must be finite"),
    "a box without width": (_annotation(bbox=[1, 1, 0, 5]), "has no area inside the image"),
    "a negative box": (_annotation(bbox=[5, 5, -3, 5]), "has no area inside the image"),
    "a box outside": (_annotation(bbox=[400, 400, 5, 5]), "has no area inside the image"),
    "a crowd flag of text": (_annotation(iscrowd="yes"), "has iscrowd='yes'; must be 0 or 1"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations(case, coco_files, tmp_path, capsys):  # noqa: F811
    damage, message = ANNOTATIONS[case]
    files = coco_files(damage)
    data = (f"data.train.json={files.json_file}", f"data.train.images={files.image_root}", "data.val=null")
    error = refused(
        capsys,
        tmp_path / "out",
        "--config-file",
        str(OWN_DATA),
        "data.total_batch_size=1",
        *data,
        written=RECORD_OF_A_RUN,
    )
    assert message in error
    assert str(files.json_file) in error


JSON_FILES = {
    "missing": (None, "data.train.json: there is no file"),
    "empty": (b"", "is not valid JSON: it is empty"),
    "compressed": (gzip.compress(b"{}"), "is not valid JSON: it is compressed; unpack it"),
    "a table": (b"file,x0,y0\n", "it begins with 'file,x0,y0'; other formats (CSV, YOLO's .txt, Pascal"),
    "cut short": (b'{"images": [{"id": 1', "is not valid JSON"),
    "binary": (bytes(range(256)), "is not valid JSON"),
    "a list": (b"[]", "the top level is a list"),
    "nested without end": (b"[" * 200_000, "is not valid JSON"),
    "not UTF-8": (b'{"images": "\xff\xfe"}', "is not valid JSON"),
}


@pytest.mark.parametrize("case", JSON_FILES)
def test_annotation_files(case, coco_files, tmp_path, capsys):  # noqa: F811
    content, message = JSON_FILES[case]
    files = coco_files()
    files.json_file.unlink()
    if content is not None:
        files.json_file.write_bytes(content)
    data = (f"data.train.json={files.json_file}", f"data.train.images={files.image_root}", "data.val=null")
    assert message in refused(capsys, tmp_path / "out", "--config-file", str(OWN_DATA), *data)


# --- image files ------------------------------------------------------------------------------------------------------


def _encoded(
    mode: str = "RGB", size: tuple[int, int] = (40, 30), suffix: str = "PNG", **options: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, suffix, **options)
    return buffer.getvalue()


def _deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _bomb(side: int) -> bytes:
    """The header of a huge PNG, and nothing else."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(suffix="JPEG", exif=exif)


BAD_IMAGES = {
    "zero bytes": (b"", "cannot be decoded: UnidentifiedImageError"),
    "text": (b"this is no picture", "cannot be decoded: UnidentifiedImageError"),
    "cut short": (_encoded("RGB", (40, 30), "BMP")[:-900], "cannot be decoded"),
    "a cut JPEG": (_encoded(suffix="JPEG")[:-200], "cannot be decoded"),
    "16 bits": (_deep(), "has pixels of more than 8 bits (PIL's mode I;16)"),
    "32-bit floats": (_encoded("F", suffix="TIFF"), "has pixels of more than 8 bits (PIL's mode F)"),
    "a bomb": (_bomb(60_000), "cannot be decoded: DecompressionBombError"),
    "another size": (
        _encoded(size=(31, 30)),
        "has height 30 and width 31, but its annotation says height 30",
    ),
    "turned by its header": (
        _turned(),
        "has height 40 and width 30, but its annotation says height 30 and width 40",
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images(case, coco_files):  # noqa: F811
    """In the training loader and in the checking tool alike."""
    content, message = BAD_IMAGES[case]
    files = coco_files()
    (files.image_root / "im20.png").write_bytes(content)
    loader = build_train_loader(files.load(), DetrDatasetMapper(True, []), 3)
    with pytest.raises(DatasetError) as caught:
        next(iter(loader))
    assert message in str(caught.value)
    assert "im20.png (image id 20)" in str(caught.value)
    report = check_dataset(files.source(), image_check="decode")
    assert any(message in example for problem in report.problems for example in problem.examples)
    header = check_dataset(files.source(), image_check="header")
    assert header.errors == 1 or "cut" in case


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "RGBA"])
def test_images_that_are_fine(mode, coco_files):  # noqa: F811
    files = coco_files()
    suffix = "TIFF" if mode == "CMYK" else "PNG"
    (files.image_root / "im20.png").write_bytes(_encoded(mode, suffix=suffix))
    batch = next(iter(build_train_loader(files.load(), DetrDatasetMapper(True, []), 3)))
    assert all(item["image"].shape[0] == 3 and item["image"].dtype == torch.uint8 for item in batch)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class _RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


GOOD = ToyDetector().state_dict()
CHECKPOINTS = {
    "missing": ("a.pth", None, "does not exist"),
    "empty": ("a.pth", b"", "is empty"),
    "text": ("a.pth", b"weights", "broken or not a checkpoint"),
    "cut to a half": ("a.pth", _saved({"model": GOOD})[:3000], "broken or not a checkpoint"),
    "cut at the end": ("a.pth", _saved({"model": GOOD})[:-30], "broken or not a checkpoint"),
    "old format, cut": (
        "a.pth",
        _saved({"model": GOOD}, _use_new_zipfile_serialization=False)[:-300],
        "broken or not a checkpoint",
    ),
    "with code": ("a.pth", _saved({"model": GOOD, "x": _RunsCode()}), "which could run code when loaded"),
    "a list": ("a.pth", _saved([1, 2]), "holds a list, not a dict"),
    "no weights": ("a.pth", _saved({"model": {}}), "holds no model weights"),
    "numbers for weights": ("a.pth", _saved({"model": {"a": 3}}), "entry 'a' is no tensor but of type int"),
    "another width": ("a.pth", _saved({"model": ToyDetector(width=4).state_dict()}), "of another shape"),
    "one tensor less": ("a.pth", _saved({"model": dict(list(GOOD.items())[1:])}), "1 missing from the file"),
    "one tensor more": (
        "a.pth",
        _saved({"model": {**GOOD, "x": torch.ones(1)}}),
        "1 unknown to the model (x)",
    ),
    "safetensors of text": ("a.safetensors", b"weights", "broken or no safetensors file"),
    "safetensors with a huge header": ("a.safetensors", b"\xff" * 64, "broken or no safetensors file"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("use", ["train", "eval"])
def test_checkpoints(case, use, tmp_path, capsys, monkeypatch):
    name, content, message = CHECKPOINTS[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    arguments = [f"train.init_checkpoint={tmp_path / name}"] + (["--eval-only"] if use == "eval" else [])
    error = refused(capsys, tmp_path / "out", *arguments, written=RECORD_OF_A_RUN)
    assert message in error and name in error
    assert not (tmp_path / "owned").exists()


# --- result files -----------------------------------------------------------------------------------------------------

ENTRY = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5}
RESULTS = {
    "missing": (None, "does not exist"),
    "no JSON": ("[{", "is not valid JSON"),
    "a mapping": ("{}", "result file"),
    "nested without end": ("[" * 200_000, "is not valid JSON"),
    "entries of numbers": ("[1]", "must be an object"),
    "no image": (json.dumps([{k: v for k, v in ENTRY.items() if k != "image_id"}]), "has no 'image_id'"),
    "a class of text": (json.dumps([{**ENTRY, "category_id": "a"}]), "category_id='a'"),
    "a score of text": (json.dumps([{**ENTRY, "score": "high"}]), "score='high'; must be a finite number"),
    "a score of NaN": (json.dumps([{**ENTRY, "score": float("nan")}]), "score=nan; must be a finite number"),
    "a box of three": (json.dumps([{**ENTRY, "bbox": [1, 2, 3]}]), "bbox"),
    "a negative box": (json.dumps([{**ENTRY, "bbox": [1, 2, -3, 4]}]), "bbox"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_result_files(case, tmp_path):
    text, message = RESULTS[case]
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(DatasetError) as caught:
        read_detections(tmp_path / "results.json")
    assert message in str(caught.value)
    assert "results.json" in str(caught.value)


RUNS = {
    "no run": (None, "it has no metrics.json"),
    "no line": ("", "has no complete line"),
    "a line that is no JSON": ("not json\n", "line 1: not a JSON object with a number 'iteration'"),
    "a line that is a list": ("[]\n", "line 1: not a JSON object"),
    "a line without iteration": ('{"a": 1}\n', "line 1: not a JSON object"),
}


@pytest.mark.parametrize("case", RUNS)
def test_metrics_of_runs(case, tmp_path):
    text, message = RUNS[case]
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_run(tmp_path)
    assert message in str(caught.value)


# --- a directory that cannot be written, an earlier run that must stay ------------------------------------------------


def test_an_output_directory_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert launch_function(run_here, args=(tmp_path / "out",)) == 2
    assert f"error: train.output_dir '{tmp_path / 'out'}' cannot be made" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_mistake_leaves_an_earlier_run_as_it_is(tmp_path, capsys):
    run_here(tmp_path, "train.max_iter=1", "train.eval_period=0")
    before = {item: item.read_bytes() for item in tmp_path.glob("*.pth")}
    for mistake in (
        "train.max_itr=1",
        "train.init_checkpoint=none.pth",
        "dataloader.train.total_batch_size=word",
    ):
        assert launch_function(run_here, args=(tmp_path, mistake)) == 2
    assert {item: item.read_bytes() for item in tmp_path.glob("*.pth")} == before
    assert not list(tmp_path.glob("previous_*"))
    # Its own weights are a fine start for the next run, which sets it aside.
    run_here(
        tmp_path,
        f"train.init_checkpoint={tmp_path / 'student_final.pth'}",
        "train.max_iter=1",
        "train.eval_period=0",
    )
    assert {item.name for item in (tmp_path / "previous_1").glob("*.pth")} == {item.name for item in before}
    capsys.readouterr()


def test_there_are_enough_cases():
    tables = (OVERRIDES, CONFIG_FILES, ANNOTATIONS, JSON_FILES, BAD_IMAGES, CHECKPOINTS, RESULTS, RUNS)
    assert sum(map(len, tables)) >= 100


# --- fuzz: nothing but a MoKDError or success, in bounded time --------------------------------------------------------

BOUNDED = settings(
    max_examples=150,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["im10.png", "..", "/", "\x00", "\ud800", "a" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for image in CONTENT["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(root / image["file_name"])
    return root


@BOUNDED
@given(st.data())
def test_fuzz_annotations(images, data):
    """Any value at any place of a good file, or any JSON at all."""
    content: Any = copy.deepcopy(CONTENT)
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        key: Any = None
        while isinstance(place, (dict, list)) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key, parent = data.draw(st.sampled_from(list(keys))), place
            place = place[key]
            if data.draw(st.booleans()):
                break
        if key is None:
            break
        parent[key] = data.draw(JSON_VALUES)
    _examine(images, json.dumps(content).encode())


@BOUNDED
@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_fuzz_annotation_files(images, content):
    _examine(images, content)


def _examine(images: Path, content: bytes) -> None:
    file = images / "fuzz.json"
    file.write_bytes(content)
    try:
        check_dataset(CocoFormatSource(None, str(file), str(images)), image_check="header")
    except MoKDError as error:
        assert "\n" not in str(error)


@BOUNDED
@given(st.data())
def test_fuzz_checkpoints(tmp_path, data):
    """Good files with some bytes changed, cut or put in; in both formats of torch, and safetensors."""
    good = data.draw(st.sampled_from(_checkpoint_files()))
    content = bytearray(good)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not content:
            break
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    name = data.draw(st.sampled_from(["a.pth", "a.safetensors"]))
    (tmp_path / name).write_bytes(bytes(content))
    model = ToyDetector()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_into(model, tmp_path / name)
    except MoKDError:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _checkpoint_files() -> list[bytes]:
    from safetensors.torch import save

    return [
        _saved({"model": GOOD}),
        _saved({"model": GOOD}, _use_new_zipfile_serialization=False),
        save(dict(GOOD)),
    ]


OVERRIDE_KEYS = st.sampled_from(
    (
        *("train", "train.max_iter", "train.best", "train.ddp", "train.non_finite", "train.", ".", "a..b"),
        *("model", "model.width", "model._target_", "objectives", "objectives.cls", "objectives.cls.0"),
        *("balancer", "balancer.lr", "optimizer.betas", "optimizer._target_", "lr_multiplier.scheduler"),
        *("dataloader.train.poison", "train.conflict_groups"),
    )
)
OVERRIDE_VALUES = (
    st.sampled_from(
        ("null", "{}", "[]", "{a: 1}", "[1,2]", "1e400", "nan", "${train.seed}", "${x}", "${", "'")
    )
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=12)
)


@BOUNDED
@given(st.lists(st.tuples(OVERRIDE_KEYS | st.text(max_size=8), OVERRIDE_VALUES).map("=".join), max_size=2))
def test_fuzz_overrides(overrides):
    try:
        load_config(CONFIG, overrides)
    except MoKDError as error:
        assert str(error).strip()
