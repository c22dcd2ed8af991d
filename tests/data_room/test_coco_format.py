"""COCO-format files: what is read, and the one clear error for everything that cannot be used."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from mokd_det.data import register_coco_format
from mokd_det.data.boxes import annotation_boxes, clip_boxes
from mokd_det.errors import ConfigError, DatasetError


def test_records_follow_image_ids_and_map_category_ids(coco_files):
    records = coco_files().load()
    assert [r["image_id"] for r in records] == [10, 20, 30]
    assert [(r["width"], r["height"]) for r in records] == [(32, 48), (40, 30), (24, 24)]
    assert [a["category_id"] for a in records[1]["annotations"]] == [1, 0, 1]
    assert records[1]["annotations"][1]["bbox"] == [20.5, 10.25, 33.0, 25.25]
    assert [a["iscrowd"] for a in records[1]["annotations"]] == [0, 0, 1]


def test_equals_detectron2_loader_on_good_data(coco_files):
    files = coco_files()
    theirs = load_coco_json(str(files.json_file), str(files.image_root), "tiny_coco_d2")
    ours = files.load()
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("file_name", "image_id", "height", "width"):
            assert mine[key] == other[key]
        assert [a["category_id"] for a in mine["annotations"]] == [
            a["category_id"] for a in other["annotations"]
        ]
        np.testing.assert_array_equal(
            annotation_boxes(mine["annotations"]), annotation_boxes(other["annotations"])
        )


def test_image_without_boxes_is_kept(coco_files):
    assert coco_files().load()[2]["annotations"] == []


def test_no_annotation_at_all_is_valid(coco_files):
    records = coco_files(lambda c: c.update(annotations=[])).load()
    assert [r["annotations"] for r in records] == [[], [], []]


def test_files_without_annotations_need_to_be_announced(coco_files):
    files = coco_files(lambda c: c.pop("annotations"))
    with pytest.raises(DatasetError, match="'annotations' is missing"):
        files.load()
    assert all("annotations" not in record for record in files.load(has_annotations=False))


def test_missing_file_is_named_with_the_hint(coco_files):
    files = coco_files()
    files.json_file.unlink()
    with pytest.raises(DatasetError, match=r"annotations\.json does not exist; make it so"):
        files.load(hint="make it so")


def test_unreadable_file(coco_files):
    files = coco_files()
    files.json_file.unlink()
    files.json_file.mkdir()
    with pytest.raises(DatasetError, match=r"annotations\.json cannot be read"):
        files.load()


@pytest.mark.parametrize("text", ['{"images": [', "", "\xff\xfe"], ids=["cut", "empty", "binary"])
def test_not_json(coco_files, text):
    files = coco_files()
    files.json_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"annotations\.json is not valid JSON"):
        files.load()


def test_json_that_is_a_list(coco_files):
    files = coco_files()
    files.json_file.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="top level is a list"):
        files.load()


DAMAGES = {
    "no images": (lambda c: c.pop("images"), "'images' is missing"),
    "no categories": (lambda c: c.pop("categories"), "'categories' is missing"),
    "images not a list": (lambda c: c.update(images={"a": 1}), "'images' is a dict, not a list"),
    "empty categories": (lambda c: c.update(categories=[]), "'categories' is empty"),
    "category twice": (lambda c: c["categories"][0].update(id=3), "category id 3 occurs twice"),
    "class name twice": (lambda c: c["categories"][0].update(name="ant"), "category name 'ant' occurs twice"),
    "category without name": (lambda c: c["categories"][1].pop("name"), "category id 3 has no 'name'"),
    "image twice": (lambda c: c["images"][0].update(id=10), "image id 10 occurs twice"),
    "image without file_name": (lambda c: c["images"][1].pop("file_name"), "image id 10 has no 'file_name'"),
    "image without id": (lambda c: c["images"][1].pop("id"), "image number 1 of the list has no 'id'"),
    "image id is a string": (lambda c: c["images"][1].update(id="10"), "id='10'; must be an integer"),
    "image of no height": (
        lambda c: c["images"][0].update(height=0),
        "image id 20 has height 0; must be > 0",
    ),
    "width is null": (lambda c: c["images"][0].update(width=None), "image id 20 has width=None"),
    "width is huge": (lambda c: c["images"][0].update(width=10**30), "image id 20 has width=1000"),
    "image id is a list": (
        lambda c: [image.update(id=[image["id"]]) for image in c["images"]],
        r"image number 0 of the list has id=\[20\]; must be an integer",
    ),
    "heights of mixed kinds": (
        lambda c: c["images"][1].update(height=[48]),
        r"image id 10 has height=\[48\]",
    ),
    "image is a string": (
        lambda c: c["images"].insert(0, "x"),
        "image number 0 of the list is 'x'; must be an object",
    ),
    "annotation twice": (lambda c: c["annotations"][1].update(id=1), "annotation id 1 occurs twice"),
    "annotation without id": (
        lambda c: c["annotations"][2].pop("id"),
        "annotation number 2 of the list has no 'id'",
    ),
    "no such image": (
        lambda c: c["annotations"][2].update(image_id=99),
        "annotation id 3 belongs to image id 99",
    ),
    "no such category": (
        lambda c: c["annotations"][1].update(category_id=5),
        r"annotation id 2 \(image id 10\) has category_id 5, which is not in 'categories' \(\[3, 7\]\)",
    ),
    "category is a float": (
        lambda c: c["annotations"][1].update(category_id=3.5),
        "annotation id 2 has category_id=3.5",
    ),
    "no bbox": (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 has no 'bbox'"),
    "bbox of three": (
        lambda c: c["annotations"][2].update(bbox=[1, 2, 3]),
        r"annotation id 3 has bbox \[1, 2, 3\]",
    ),
    "bbox of strings": (
        lambda c: c["annotations"][2].update(bbox=["1", "2", "3", "4"]),
        "annotation id 3 has bbox .*must be four numbers",
    ),
    "bbox with null": (
        lambda c: c["annotations"][0].update(bbox=[0, 0, None, 4]),
        "annotation id 1 has bbox",
    ),
    "bbox is huge": (
        lambda c: c["annotations"][0].update(bbox=[0, 0, 10**30, 4]),
        "annotation id 1 has bbox",
    ),
    "bbox with NaN": (
        lambda c: c["annotations"][1].update(bbox=[0, 0, float("nan"), 4]),
        "annotation id 2 has bbox .*must be finite",
    ),
    "bbox with infinity": (
        lambda c: c["annotations"][1].update(bbox=[0, float("-inf"), 3, 4]),
        "annotation id 2 has bbox .*must be finite",
    ),
    "bbox of zero width": (
        lambda c: c["annotations"][2].update(bbox=[1, 2, 0, 4]),
        r"annotation id 3 of image id 20 .*im20\.png.* has no area",
    ),
    "bbox of negative height": (
        lambda c: c["annotations"][2].update(bbox=[1, 20, 3, -4]),
        "annotation id 3 of image id 20 .* has no area",
    ),
    "bbox outside": (
        lambda c: c["annotations"][0].update(bbox=[41, 2, 3, 4]),
        "annotation id 1 of image id 20 .* no area inside the image of width 40 and height 30; correct",
    ),
    "bbox left of the image": (
        lambda c: c["annotations"][0].update(bbox=[-9, 2, 3, 4]),
        "annotation id 1 of image id 20",
    ),
    "iscrowd of two": (lambda c: c["annotations"][3].update(iscrowd=2), "annotation id 4 has iscrowd=2"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(coco_files, damage, message):
    files = coco_files(damage)
    with pytest.raises(DatasetError, match=message) as error:
        files.load()
    assert str(files.json_file) in str(error.value)


def test_image_without_file(coco_files):
    files = coco_files()
    (files.image_root / "im10.png").unlink()
    with pytest.raises(
        DatasetError, match=r"annotations\.json: image file .*im10\.png \(image id 10\) does not exist"
    ):
        files.load()


def test_image_folder_missing(coco_files):
    files = coco_files(lambda c: c["images"][2].update(file_name="elsewhere/im30.png"))
    with pytest.raises(DatasetError, match=r"annotations\.json: image folder .*elsewhere \(of image id 30\)"):
        files.load()


def test_boxes_are_clipped_with_a_warning(coco_files, caplog):
    files = coco_files(lambda c: c["annotations"][0].update(bbox=[-5, -2.5, 60, 12.5]))
    with caplog.at_level(logging.WARNING, logger="mokd_det"):
        boxes = annotation_boxes(files.load()[1]["annotations"])
    assert boxes[0].tolist() == [0, 0, 40, 10]
    assert "annotation id 1 of image id 20" in caplog.text
    assert "reaches 15 pixels out of the image of width 40 and height 30 and is clipped" in caplog.text


def test_rounding_is_clipped_without_a_warning(coco_files, caplog):
    files = coco_files(lambda c: c["annotations"][1].update(bbox=[0, 0, 33, 48.5]))
    with caplog.at_level(logging.WARNING, logger="mokd_det"):
        assert files.load()[0]["annotations"][0]["bbox"] == [0, 0, 32, 48]
    assert caplog.text == ""


def test_bad_boxes_can_be_dropped(coco_files, caplog):
    files = coco_files(
        lambda c: (
            c["annotations"][0].update(bbox=[1, 2, 0, 4]),
            c["annotations"][1].update(bbox=[50, 2, 3, 4]),
        )
    )
    with caplog.at_level(logging.WARNING, logger="mokd_det"):
        records = files.load(on_bad_box="drop")
    assert [len(r["annotations"]) for r in records] == [0, 2, 0]
    assert records[1]["annotations"][0]["bbox"] == [20.5, 10.25, 33.0, 25.25]
    assert "annotation id 1 of image id 20" in caplog.text
    assert "annotation id 2 of image id 10" in caplog.text


def test_dropping_does_not_forgive_nan(coco_files):
    files = coco_files(lambda c: c["annotations"][1].update(bbox=[0, 0, float("nan"), 4]))
    with pytest.raises(DatasetError, match="must be finite"):
        files.load(on_bad_box="drop")


def test_repeated_annotation_ids_can_be_tolerated(coco_files):
    files = coco_files(lambda c: c["annotations"][1].update(id=1))
    assert sum(len(r["annotations"]) for r in files.load(unique_annotation_ids=False)) == 4


def test_unknown_policy():
    with pytest.raises(ConfigError, match="on_bad_box='ignore': must be 'error' or 'drop'"):
        register_coco_format("tiny_policy", "a.json", "a", on_bad_box="ignore")


def test_registration_fills_catalog_and_metadata(coco_files):
    files = coco_files()
    register_coco_format("tiny_meta", files.json_file, files.image_root)
    assert len(DatasetCatalog.get("tiny_meta")) == 3
    metadata = MetadataCatalog.get("tiny_meta")
    assert metadata.thing_classes == ["ant", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco" and metadata.json_file == str(files.json_file)


def test_registering_twice(coco_files):
    files = coco_files()
    register_coco_format("tiny_twice", files.json_file, files.image_root)
    register_coco_format("tiny_twice", files.json_file, files.image_root)
    with pytest.raises(DatasetError, match="'tiny_twice' is already registered"):
        register_coco_format("tiny_twice", files.json_file, files.image_root, on_bad_box="drop")


def test_classes_must_be_those_that_were_announced(coco_files):
    files = coco_files()
    register_coco_format("tiny_classes", files.json_file, files.image_root, thing_classes=["ant", "dog"])
    with pytest.raises(
        DatasetError, match=r"thing_classes=\['ant', 'cat'\].*'tiny_classes'.*\['ant', 'dog'\]"
    ):
        DatasetCatalog.get("tiny_classes")


def test_large_file_keeps_every_box_with_its_image(tmp_path):
    rng = np.random.default_rng(3)
    images, per_image = 3000, 5
    ids = rng.permutation(10**6)[:images]
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "a.png").touch()
    owners = rng.choice(ids, images * per_image)
    content = {
        "categories": [{"id": i, "name": str(i)} for i in range(1, 81)],
        "images": [{"id": int(i), "file_name": "a.png", "width": 640, "height": 480} for i in ids],
        "annotations": [
            {"id": n, "image_id": int(o), "category_id": 1 + n % 80, "bbox": [n % 600, 1.5, 10, 10.25]}
            for n, o in enumerate(owners, start=1)
        ],
    }
    file = tmp_path / "large.json"
    file.write_text(json.dumps(content))
    register_coco_format("tiny_large", file, tmp_path / "im")
    records = DatasetCatalog.get("tiny_large")
    expected: dict[int, list] = {int(i): [] for i in ids}
    for n, owner in enumerate(owners, start=1):
        expected[int(owner)].append(([n % 600, 1.5, n % 600 + 10, 11.75], n % 80))
    assert [r["image_id"] for r in records] == sorted(expected)
    for record in records:
        found = [(a["bbox"], a["category_id"]) for a in record["annotations"]]
        assert found == expected[record["image_id"]]


def test_annotation_boxes_mixes_modes_and_rejects_others():
    xywh = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS}
    xyxy = {"bbox": (1.0, 2.0, 3.0, 4.0), "bbox_mode": 0}
    assert annotation_boxes([xywh, xyxy]).tolist() == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert annotation_boxes([]).shape == (0, 4)
    with pytest.raises(ValueError, match="neither XYXY_ABS nor XYWH_ABS"):
        annotation_boxes([{"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_REL}])
    with pytest.raises(ValueError, match="not four numbers"):
        annotation_boxes([{"bbox": [0, 0, 1, 1, 30, 1, 2, 3], "bbox_mode": BoxMode.XYXY_ABS}])


def test_clip_boxes_keeps_inner_boxes_and_flags_empty_ones():
    boxes = np.array([[1.0, 2, 3, 4], [-1, -1, 2, 50], [12, 0, 14, 5], [3, 3, 3, 4], [5, 5, 4, 6]])
    clipped, good = clip_boxes(boxes, np.tile([10, 20], (5, 1)))
    assert good.tolist() == [True, True, False, False, False]
    assert clipped[:2].tolist() == [[1, 2, 3, 4], [0, 0, 2, 20]]
