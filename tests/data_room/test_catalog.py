"""Data sets by name: Detectron2's own registrations, ours and a user's."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from mokd_det.data import (
    check_dataset_dicts,
    datasets_root,
    load_dataset_dicts,
    register_coco_format,
    register_digits,
    without_classes,
)
from mokd_det.data.digits import KINDS
from mokd_det.errors import DatasetError


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(DatasetError, match="unknown data set 'digit_train'; did you mean 'digits_train'"):
        load_dataset_dicts("digit_train")


def test_no_name():
    with pytest.raises(DatasetError, match="no data set name"):
        load_dataset_dicts([])


def test_bundled_names_are_registered_with_their_classes():
    for kind, names in {"digits": "0123456789", "digits_hard": "0123456789", "digits_few": "012"}.items():
        for split in ("train", "val", "test"):
            assert f"{kind}_{split}" in DatasetCatalog
            assert MetadataCatalog.get(f"{kind}_{split}").thing_classes == list(names)


def test_missing_bundled_data_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for kind in KINDS:
        for split in ("train", "val", "test"):
            DatasetCatalog.remove(f"{kind}_{split}")
            MetadataCatalog.remove(f"{kind}_{split}")
    register_digits(datasets_root())
    with pytest.raises(DatasetError) as error:
        load_dataset_dicts("digits_hard_val")
    assert f"{tmp_path}/digits_hard/annotations/val.json does not exist" in str(error.value)
    assert "python datasets/make_digits.py digits_hard" in str(error.value)


def test_several_names_are_joined(coco_files):
    files = coco_files()
    for name in ("tiny_a", "tiny_b"):
        register_coco_format(name, files.json_file, files.image_root)
    assert [r["image_id"] for r in load_dataset_dicts(["tiny_a", "tiny_b"])] == [10, 20, 30, 10, 20, 30]


def test_filter_empty_leaves_out_images_without_boxes_or_with_crowds_only(coco_files):
    files = coco_files(lambda c: c["annotations"][1].update(iscrowd=1))
    register_coco_format("tiny_filter", files.json_file, files.image_root)
    assert [r["image_id"] for r in load_dataset_dicts("tiny_filter")] == [10, 20, 30]
    assert [r["image_id"] for r in load_dataset_dicts("tiny_filter", filter_empty=True)] == [20]


def test_filter_empty_that_leaves_nothing(coco_files):
    files = coco_files(lambda c: c.update(annotations=[]))
    register_coco_format("tiny_nothing", files.json_file, files.image_root)
    with pytest.raises(DatasetError, match="'tiny_nothing' has no image with boxes"):
        load_dataset_dicts("tiny_nothing", filter_empty=True)


def test_joined_sets_must_agree_on_classes(coco_files):
    files = coco_files()
    register_coco_format("tiny_two", files.json_file, files.image_root)
    DatasetCatalog.register(
        "tiny_other", lambda: [{"file_name": "a", "image_id": 1, "height": 2, "width": 2}]
    )
    MetadataCatalog.get("tiny_other").thing_classes = ["ant"]
    with pytest.raises(
        DatasetError, match=r"'tiny_two' and 'tiny_other' cannot be joined: their classes differ"
    ):
        load_dataset_dicts(["tiny_two", "tiny_other"])


@pytest.fixture
def coco_val(coco_files, monkeypatch):
    """Detectron2's ``coco_2017_val``, pointed at tiny files with two of COCO's 80 classes in use."""
    metadata = MetadataCatalog.get("coco_2017_val")
    ids = list(metadata.thing_dataset_id_to_contiguous_id)

    def damage(content):
        content["categories"] = [{"id": i, "name": metadata.thing_classes[n]} for n, i in enumerate(ids)]
        for annotation in content["annotations"]:
            annotation["category_id"] = {7: 90, 3: 13}[annotation["category_id"]]
        content["annotations"][0]["bbox"] = [3, 3, 0, 5]

    files = coco_files(damage)
    monkeypatch.setitem(metadata.__dict__, "json_file", str(files.json_file))
    monkeypatch.setitem(metadata.__dict__, "image_root", str(files.image_root))
    return files


def test_coco_keeps_detectron2s_80_classes_and_drops_empty_boxes(coco_val):
    records = load_dataset_dicts("coco_2017_val")
    classes = [a["category_id"] for r in records for a in r["annotations"]]
    assert classes == [11, 11, 79]
    assert len(MetadataCatalog.get("coco_2017_val").thing_classes) == 80


def test_coco_with_foreign_categories(coco_val):
    content = json.loads(coco_val.json_file.read_text())
    content["categories"][0]["name"] = "robot"
    coco_val.json_file.write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match=r"thing_classes=\['robot'.*'coco_2017_val' is known with \['person'"
    ):
        load_dataset_dicts("coco_2017_val")


def test_missing_coco_says_where_it_is_looked_for(coco_val):
    coco_val.json_file.unlink()
    with pytest.raises(DatasetError, match=r"does not exist; download COCO .* DETECTRON2_DATASETS"):
        load_dataset_dicts("coco_2017_val")


def test_a_users_detectron2_registration_is_checked(coco_files):
    files = coco_files(lambda c: c["annotations"][0].update(bbox=[70, 2, 3, 4]))
    register_coco_instances("tiny_user", {}, str(files.json_file), str(files.image_root))
    with pytest.raises(
        DatasetError, match=r"'tiny_user', image id 20 .*im20\.png.*no area .*register_coco_format"
    ):
        load_dataset_dicts("tiny_user")


def test_a_users_missing_file_is_a_dataset_error(coco_files):
    files = coco_files()
    files.json_file.unlink()
    register_coco_instances("tiny_user_missing", {}, str(files.json_file), str(files.image_root))
    with pytest.raises(DatasetError, match=r"'tiny_user_missing': .*annotations\.json"):
        load_dataset_dicts("tiny_user_missing")


def test_a_users_broken_file_is_a_dataset_error(coco_files):
    files = coco_files(lambda c: c["annotations"][0].update(category_id=5))
    register_coco_instances("tiny_user_broken", {}, str(files.json_file), str(files.image_root))
    with pytest.raises(DatasetError, match=r"'tiny_user_broken' cannot be loaded: KeyError: .*category_id=5"):
        load_dataset_dicts("tiny_user_broken")


def _record(**annotation):
    whole = {"bbox": [1, 1, 3, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **annotation}
    return {"file_name": "a.png", "image_id": 4, "height": 8, "width": 8, "annotations": [whole]}


@pytest.mark.parametrize(
    "record, message",
    [
        ({"image_id": 4, "height": 8, "width": 8}, "image id 4: the record has no 'file_name'"),
        ({"file_name": "a", "height": 8, "width": 8}, r"image id \(number 0\): the record has no 'image_id'"),
        (_record(category_id=2), r"image id 4: category_id 2 is not in 0 \.\.\. 1"),
        (_record(category_id=None), "image id 4: category_id None"),
        (_record(bbox_mode=BoxMode.XYWHA_ABS), "image id 4: boxes must be four numbers with bbox_mode"),
        (_record(bbox=[1, 1, float("nan"), 3]), "image id 4 .*has no area"),
        (
            _record(bbox=[1, 1, 1, 3]),
            r"image id 4 \(a\.png\): the box \[1\.0, 1\.0, 1\.0, 3\.0\].*has no area",
        ),
    ],
)
def test_records_of_other_loaders_are_checked(record, message):
    MetadataCatalog.get("tiny_check").thing_classes = ["ant", "cat"]
    with pytest.raises(DatasetError, match=message):
        check_dataset_dicts([record], "tiny_check")


def test_good_records_of_other_loaders_pass():
    MetadataCatalog.get("tiny_good").thing_classes = ["ant", "cat"]
    plain = {"file_name": "b.png", "image_id": 5, "height": 8, "width": 8}
    check_dataset_dicts([_record(), _record(category_id=1, bbox_mode=BoxMode.XYWH_ABS), plain], "tiny_good")


def test_without_classes_every_box_is_of_one_class_and_the_catalog_keeps_its_own(coco_files):
    files = coco_files()
    register_coco_format("tiny_classes", files.json_file, files.image_root)
    before = load_dataset_dicts("tiny_classes")
    found = without_classes("tiny_classes")
    assert {box["category_id"] for record in found for box in record["annotations"]} == {0}
    assert (
        len(
            {
                box["category_id"]
                for record in load_dataset_dicts("tiny_classes")
                for box in record["annotations"]
            }
        )
        > 1
    )
    assert [[box["bbox"] for box in record["annotations"]] for record in found] == [
        [box["bbox"] for box in record["annotations"]] for record in before
    ]
