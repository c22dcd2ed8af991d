"""What a predicted class means."""

from __future__ import annotations

import pytest
from detectron2.data import MetadataCatalog

from mokd_det.data import register_coco_format
from mokd_det.data.class_table import dataset_classes, file_classes
from mokd_det.errors import ConfigError, DatasetError


def test_of_a_file(coco_files):
    table = file_classes(str(coco_files().json_file))
    assert (table.names, table.category_ids) == (("ant", "cat"), (3, 7))


def test_of_a_registered_file(coco_files):
    files = coco_files()
    register_coco_format("class_table_data", files.json_file, files.image_root)
    assert dataset_classes("class_table_data").category_ids == (3, 7)


def test_cocos_are_known_without_a_file():
    table = dataset_classes("coco_2017_val")
    assert len(table.names) == 80
    assert (table.names[-1], table.category_ids[-1], table.category_ids[11]) == ("toothbrush", 90, 13)


def test_indices_and_ids(coco_files):
    table = file_classes(str(coco_files().json_file))
    assert [table.index(0), table.index(1)] == [0, 1]
    # a head with a row for every id: 3 and 7 are classes, the others spare
    assert [table.index(label, by_id=True) for label in range(8)] == [
        None,
        None,
        None,
        0,
        None,
        None,
        None,
        1,
    ]
    with pytest.raises(
        ConfigError, match=r"predicts class 2, but .*annotations.json has 2 classes \(0 to 1 can"
    ):
        table.index(2)
    with pytest.raises(ConfigError, match=r"predicts class 8, .* \(0 to 7 can"):
        table.index(8, by_id=True)


def test_what_has_no_classes_is_named():
    with pytest.raises(DatasetError, match="unknown data set 'coco_2017_vall'; did you mean 'coco_2017_val'"):
        dataset_classes("coco_2017_vall")
    MetadataCatalog.get("nameless").thing_dataset_id_to_contiguous_id = {1: 0}
    with pytest.raises(ConfigError, match="metadata of data set 'nameless' has no thing_classes"):
        dataset_classes("nameless")
