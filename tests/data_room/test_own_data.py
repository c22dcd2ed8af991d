"""A user's own files: what follows from them, and what is wrong with them, before anything is built."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mokd_det.data import OwnData
from mokd_det.errors import ConfigError, DatasetError

CATEGORIES = [{"id": 90, "name": "bolt"}, {"id": 3, "name": "screw"}, {"id": 17, "name": "nut"}]

Make = Callable[..., dict[str, str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a split with 8-pixel images and returns its paths; ``damage`` changes the content before."""

    def write(
        split: str, images: int = 4, damage: Callable[[dict[str, Any]], Any] = lambda c: None
    ) -> dict[str, str]:
        folder = tmp_path / split
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        content = {
            "categories": copy.deepcopy(CATEGORIES),
            "images": [
                {"id": 5 + 10 * i, "file_name": "a.png", "width": 8, "height": 8} for i in range(images)
            ],
            "annotations": [
                {"id": i, "image_id": 5 + 10 * i, "category_id": 17, "bbox": [1, 1, 4, 4]}
                for i in range(images)
            ],
        }
        damage(content)
        file = tmp_path / f"{split}.json"
        file.write_text(json.dumps(content))
        return {"json": str(file), "images": str(folder)}

    return write


def test_what_follows_from_the_files(make: Make) -> None:
    train, val = make("train", 40), make("val", 3)
    facts = OwnData(train, val, total_batch_size=4, epochs=3).read()
    assert (facts.num_classes, facts.class_names) == (3, ["screw", "nut", "bolt"])
    assert (facts.train_images, facts.epochs, facts.max_iter, facts.eval_period) == (40, 3, 30, 10)
    assert facts.lr == pytest.approx(1e-4 * math.sqrt(4 / 16))
    assert len(DatasetCatalog.get(facts.train_dataset)) == 40
    assert [record["image_id"] for record in DatasetCatalog.get(facts.val_dataset)] == [5, 15, 25]
    assert OwnData(train, val, total_batch_size=4, epochs=3).read() == facts


@pytest.mark.parametrize(
    "images, batch, accumulate, epochs, max_iter, eval_period",
    [
        (40, 4, 1, 600, 6000, 120),  # few images: at least 6,000 iterations, 50 evaluations
        (40, 16, 1, 3000, 6000, 120),  # the incomplete third batch is left out
        (40, 4, 2, 1200, 6000, 120),
        (40, 4, 4, 2400, 6000, 120),
    ],
)
def test_the_schedule_of_small_data(
    make: Make, images: int, batch: int, accumulate: int, epochs: int, max_iter: int, eval_period: int
) -> None:
    facts = OwnData(make("train", images), None, total_batch_size=batch, accumulate=accumulate).read()
    assert (facts.epochs, facts.max_iter, facts.eval_period) == (epochs, max_iter, eval_period)
    assert facts.lr == pytest.approx(1e-4 * math.sqrt(batch * accumulate / 16))


def test_the_schedule_of_large_data() -> None:
    batches = {epochs: OwnData()._default_epochs(epochs) for epochs in (200, 7392, 100_000, 400_000)}
    assert batches == {200: 50, 7392: 50, 100_000: 3, 400_000: 1}


@pytest.mark.parametrize("count", [1, 2, 200])
def test_any_number_of_classes(make: Make, count: int) -> None:
    def classes(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 7 * i + 17, "name": f"c{i}"} for i in range(count)]

    facts = OwnData(make("train", 4, classes), make("val", 2, classes), total_batch_size=2).read()
    assert facts.num_classes == count and facts.class_names[-1] == f"c{count - 1}"


def test_paths_that_are_not_given_are_named_together(make: Make) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^data\.train\.json, data\.train\.images, data\.val\.json, data\.val\.images are not given: .*"
        r"data\.val=null trains without evaluation$",
    ):
        OwnData().read()
    train = make("train")
    with pytest.raises(ConfigError, match=r"^data\.val\.images is not given"):
        OwnData(train, {"json": train["json"]}, total_batch_size=2).read()
    with pytest.raises(ConfigError, match=r"^data\.val\.json, data\.val\.images are not given"):
        OwnData(train, {"json": "", "images": None}, total_batch_size=2).read(training=False)


def test_paths_that_do_not_exist(make: Make) -> None:
    train = make("train")
    with pytest.raises(ConfigError, match=r"^data\.train\.json: there is no file 'no\.json'$"):
        OwnData({**train, "json": "no.json"}, None).read()
    with pytest.raises(ConfigError, match=r"^data\.val\.images: there is no folder 'no'$"):
        OwnData(train, {**train, "images": "no"}).read()
    with pytest.raises(ConfigError, match=r"there is no file '.*/train', but a folder: give the JSON file"):
        OwnData({**train, "json": train["images"]}, None).read()
    with pytest.raises(ConfigError, match=r"no folder '.*\.json', but a file: unpack archives first"):
        OwnData({**train, "images": train["json"]}, None).read()


def test_without_validation_and_without_training_data(make: Make) -> None:
    train, val = make("train"), make("val")
    alone = OwnData(train, None, total_batch_size=2).read()
    assert alone.val_dataset is None and alone.train_dataset is not None
    evaluation = OwnData({"json": "", "images": ""}, val).read(training=False)
    assert evaluation.train_dataset is None and evaluation.class_names == ["screw", "nut", "bolt"]


def test_relative_paths_and_home(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("train")
    monkeypatch.chdir(tmp_path)
    facts = OwnData({"json": "train.json", "images": "train"}, None, total_batch_size=2).read()
    assert facts.train_dataset == "train.json in train"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert OwnData({"json": "~/train.json", "images": "~/train"}, None, total_batch_size=2).read().max_iter


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: c["categories"].append({"id": 91, "name": "washer"}), "differ; only in val: 'washer'$"),
        (
            lambda c: (c["categories"][0].update(name="Bolt"), c["categories"].pop(1)),
            "differ; only in train: 'screw', 'bolt'; only in val: 'Bolt'$",
        ),
        (
            lambda c: c["categories"][0].update(id=1),
            "differ; by ascending id, number 1 is 'screw' in train and 'bolt' in val$",
        ),
    ],
)
def test_other_categories_in_validation(make: Make, damage: Callable, message: str) -> None:
    train, val = make("train"), make("val", 4, damage)
    with pytest.raises(DatasetError, match=rf"^the categories of data\.train\.json .*{message}"):
        OwnData(train, val, total_batch_size=2).read()


def test_other_ids_with_the_same_order_of_names_are_fine(make: Make) -> None:
    val = make("val", 4, lambda c: c["categories"][0].update(id=95))
    assert OwnData(make("train"), val, total_batch_size=2).read().num_classes == 3


def test_a_mistake_in_the_validation_data_does_not_wait(make: Make) -> None:
    val = make("val", 4, lambda c: c["annotations"][2].update(bbox=[1, 1, 0, 3]))
    train = make("train")
    with pytest.raises(DatasetError, match=r"val\.json: annotation id 2 .*no area"):
        OwnData(train, val, total_batch_size=2).read()
    facts = OwnData(train, val, total_batch_size=2, on_bad_box="drop").read()
    assert facts.val_dataset.endswith(", bad boxes dropped")


def test_a_batch_that_is_too_large(make: Make) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.total_batch_size is 16, but data\.train\.json lists 4 images"
    ):
        OwnData(make("train"), None).read()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(train={"jsn": "a"}), "data.train is {'jsn': 'a'}; it must have the keys json and images"),
        (dict(train=None), "data.train is None; it must have the keys"),
        (dict(val="a.json"), "data.val is 'a.json'; it must have the keys"),
        (dict(train={"json": 3}), "data.train.json is 3; it must be a path"),
        (dict(epochs=0), "data.epochs is 0; it must be an integer of 1 or more"),
        (dict(epochs=1.5), "data.epochs is 1.5; it must be an integer of 1 or more"),
        (dict(total_batch_size=True), "data.total_batch_size is True; it must be an integer of 1 or more"),
        (dict(lr=-1.0), "data.lr is -1.0; it must be a number of 0 or more"),
        (dict(on_bad_box="skip"), "data.on_bad_box is 'skip'; it must be 'error' or 'drop'"),
    ],
)
def test_wrong_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        OwnData(**options)
    assert str(error.value).startswith(message)
