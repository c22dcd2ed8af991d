"""Result and annotation files: what is read, and the one message for each thing that is wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mokd_det.data.truth import file_truth
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.detection_file import match_ids, read_detections
from tests.evaluation.detection_samples import write_results, write_truth

GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3.5, 4], "score": 1}
TRUE = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}


def test_what_is_in_a_result_file(tmp_path):
    found = read_detections(write_results(tmp_path / "vkd.json", [GOOD, {**GOOD, "score": 0.25}]))
    assert found.name == "vkd"
    assert found.boxes.tolist() == [[1, 2, 3.5, 4]] * 2 and found.scores.tolist() == [1.0, 0.25]
    assert found.image_ids.tolist() == [1, 1] and found.category_ids.tolist() == [3, 3]
    assert read_detections(tmp_path / "vkd.json", "other").name == "other"


def test_an_empty_list_is_a_result(tmp_path):
    found = read_detections(write_results(tmp_path / "r.json", []))
    assert found.boxes.shape == (0, 4) and len(found.scores) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "is not valid JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "is not valid JSON"),
        ('"x"', "the top level is a str, not a list"),
        ('{"detections": []}', "the top level is a dict, not a list"),
        ('{"annotations": []}', "is an annotation file, not a result file"),
        ("[1]", "detection number 0 of the list is 1; must be an object"),
        (json.dumps([GOOD, {}]), "detection number 1 of the list has no 'bbox'"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "image_id"}]), "has no 'image_id'"),
        (json.dumps([{**GOOD, "image_id": "1"}]), "has image_id='1'; must be an integer"),
        (json.dumps([{**GOOD, "category_id": True}]), "has category_id=True"),
        (json.dumps([{**GOOD, "category_id": 10**30}]), "must be an integer"),
        (
            json.dumps([{**GOOD, "bbox": [1, 2, 3]}]),
            r"has bbox \[1, 2, 3\]; must be four numbers \[x, y, w, h\]",
        ),
        (json.dumps([{**GOOD, "bbox": [1, 2, -3, 4]}]), "must not be negative"),
        (json.dumps([{**GOOD, "bbox": [1, 2, float("nan"), 4]}]), "finite"),
        (json.dumps([{**GOOD, "bbox": None}]), "has bbox None"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "bbox"}]), "has no 'bbox'"),
        (json.dumps([{**GOOD, "score": float("inf")}]), "has score=inf; must be a finite number"),
        (json.dumps([{**GOOD, "score": "0.9"}]), "has score='0.9'"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "score"}]), "has no 'score'"),
    ],
)
def test_malformed_result_files(tmp_path, content, said):
    file = tmp_path / "r.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=said) as caught:
        read_detections(file)
    assert "r.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_result_file(tmp_path):
    with pytest.raises(DatasetError, match=r"result file .*none\.json does not exist"):
        read_detections(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_detections(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_result(tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert read_detections(file).scores.tolist() == [1.0]


def test_the_truth_is_what_training_sees(tmp_path):
    """Clipped, without what is dropped, with areas that can be compared."""
    file = write_truth(
        tmp_path / "t.json",
        [
            {**TRUE, "bbox": [-5, 390, 900, 20], "area": 18000},
            {**TRUE, "iscrowd": 1, "area": 7.5},
            {**TRUE, "bbox": [500, 1, 3, 3]},
        ],
        images=[1, 9],
        classes={3: "a", 4: "b"},
    )
    with pytest.raises(DatasetError, match=r"annotation id 3 of image id 1 .* has no area inside"):
        file_truth(file)
    truth = file_truth(file, on_bad_box="drop")
    assert truth.boxes.tolist() == [[0, 390, 400, 10], [1, 2, 3, 4]]
    assert truth.areas.tolist() == [4000, 7.5]
    assert truth.crowd.tolist() == [False, True]
    assert truth.image_names == {1: "1.png", 9: "9.png"} and truth.class_names == {3: "a", 4: "b"}


def test_part_of_the_truth(tmp_path):
    file = write_truth(tmp_path / "t.json", [TRUE, {**TRUE, "image_id": 2}], images=[1, 2], classes={3: "a"})
    part = file_truth(file).of_images([2])
    assert part.image_names == {2: "2.png"} and part.image_ids.tolist() == [2] and part.boxes.shape == (1, 4)


def test_ids_are_compared_with_the_truths(tmp_path):
    truth = file_truth(write_truth(tmp_path / "t.json", [TRUE], images=[1, 2], classes={3: "a"}))
    rows = [GOOD, {**GOOD, "image_id": 7}, {**GOOD, "image_id": 8}, {**GOOD, "category_id": 99}]
    found = read_detections(write_results(tmp_path / "r.json", rows))
    with pytest.raises(
        ConfigError, match=r"r: 2 detections are of image id 7 and 1 other unknown ids.*it has \[1, 2\]"
    ):
        match_ids(found, truth)
    kept, dropped = match_ids(found, truth, drop_unknown=True)
    assert dropped == 3 and kept.image_ids.tolist() == [1] and kept.boxes.shape == (1, 4)
    found = read_detections(write_results(tmp_path / "r.json", rows[3:]))
    with pytest.raises(ConfigError, match=r"1 detections are of category id 99, which .*it has \[3\]"):
        match_ids(found, truth)
    same, none = match_ids(kept, truth)
    assert none == 0 and np.array_equal(same.boxes, kept.boxes)
