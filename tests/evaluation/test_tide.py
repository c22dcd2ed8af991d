"""TIDE: equal to tidecv, right where tidecv silently is not, crowds as in COCO, and every end of the scale."""

from __future__ import annotations

import contextlib
import io
import json

import matplotlib
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tidecv import TIDE

from mokd_det.data.truth import file_truth
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.detection_file import Detections, read_detections
from mokd_det.evaluation.tide import ERROR_TYPES, SPECIAL_TYPES, run_tide, to_tidecv
from mokd_det.evaluation.tide_tables import tide_json, tide_markdown
from tests.evaluation.detection_samples import crowded, noisy, write_results, write_truth


@pytest.fixture
def tide(tmp_path, monkeypatch):
    """tidecv's own front end; kept from writing to the home directory and from restyling matplotlib for others."""
    monkeypatch.setenv("TIDE_PATH", str(tmp_path / "tidecv"))
    with matplotlib.rc_context():
        yield TIDE


def tidecv_numbers(tide, truth, detections, threshold, background):
    """AP and errors exactly as a user of tidecv gets them."""
    evaluation = tide(pos_threshold=threshold, background_threshold=background)
    run = evaluation.evaluate(*to_tidecv(truth, detections), name="run")
    errors = evaluation.get_all_errors()
    return run.ap, {**errors["main"]["run"], **errors["special"]["run"]}


@pytest.mark.parametrize("seed", range(3))
def test_equals_tidecv(tmp_path, tide, seed):
    files = noisy(tmp_path, seed, images=20)
    truth, detections = file_truth(files[0]), read_detections(files[1])
    report = run_tide(truth, detections, thresholds=(0.5, 0.75, 0.9), background=0.1)
    assert report.crowded_images == 0 and report.ap_with_tidecv_limit == []
    for errors in report.errors:
        ap, dap = tidecv_numbers(tide, truth, detections, errors.threshold, errors.background)
        assert errors.ap == pytest.approx(ap, abs=1e-9)
        assert set(dap) == {*ERROR_TYPES, *SPECIAL_TYPES}
        assert errors.dap == pytest.approx(dap, abs=1e-9)
    # The data are worth it: every type occurs.
    assert all(report.errors[0].counts[name] > 0 for name in ERROR_TYPES)


def test_another_background_threshold_changes_what_counts_as_nothing(tmp_path, tide):
    files = noisy(tmp_path, 0)
    truth, detections = file_truth(files[0]), read_detections(files[1])
    (low,) = run_tide(truth, detections, background=0.02).errors
    (high,) = run_tide(truth, detections, background=0.4).errors
    assert low.counts["Bkg"] < high.counts["Bkg"] and low.counts["Loc"] > high.counts["Loc"]
    assert high.dap == pytest.approx(tidecv_numbers(tide, truth, detections, 0.5, 0.4)[1], abs=1e-9)


def test_150_objects_per_image_found_perfectly_are_100(tmp_path, tide):
    files = crowded(tmp_path)
    truth, detections = file_truth(files[0]), read_detections(files[1])
    report = run_tide(truth, detections, thresholds=(0.5, 0.75))
    for errors in report.errors:
        assert errors.ap == pytest.approx(100.0, abs=1e-9)
        assert errors.dap == pytest.approx(dict.fromkeys([*ERROR_TYPES, *SPECIAL_TYPES], 0.0), abs=1e-9)
        assert sum(errors.counts.values()) == 0
    # tidecv itself drops a third of them, and says nothing.
    ap, dap = tidecv_numbers(tide, truth, detections, 0.5, 0.1)
    assert ap < 70 and dap["Miss"] > 30
    assert report.ap_with_tidecv_limit[0] == pytest.approx(ap, abs=1e-9)
    (note,) = report.notes()
    assert "2 images have more than 100 detections (up to 150)" in note
    assert f"{ap:.1f} instead of 100.0 at 0.5" in note


def test_tidecvs_limit_can_be_asked_for(tmp_path, tide):
    files = crowded(tmp_path)
    truth, detections = file_truth(files[0]), read_detections(files[1])
    report = run_tide(truth, detections, limit=100)
    ap, dap = tidecv_numbers(tide, truth, detections, 0.5, 0.1)
    assert report.errors[0].ap == pytest.approx(ap, abs=1e-9)
    assert report.errors[0].dap == pytest.approx(dap, abs=1e-9)
    assert "only the 100 best detections of an image count, of up to 150" in report.notes()[0]


def test_a_limit_of_the_detector_is_named(tmp_path):
    files = crowded(tmp_path)
    content = json.loads(files[1].read_text())
    kept = [d for image in (1, 2) for d in [d for d in content if d["image_id"] == image][:100]]
    detections = read_detections(write_results(tmp_path / "hundred.json", kept))
    report = run_tide(file_truth(files[0]), detections)
    assert report.crowded_images == 0
    (note,) = report.notes()
    assert "2 images have more true boxes than any image has detections (100)" in note


CROWD = [
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "iscrowd": 0},
    {"image_id": 1, "category_id": 1, "bbox": [100, 100, 200, 200], "iscrowd": 1},
    {"image_id": 1, "category_id": 2, "bbox": [10, 200, 40, 40], "iscrowd": 0},
]
FOUND = [
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.5},
    {"image_id": 1, "category_id": 2, "bbox": [10, 200, 40, 40], "score": 0.5},
    # In the crowd: small against it, so its IoU is next to nothing.
    {"image_id": 1, "category_id": 1, "bbox": [110, 110, 20, 20], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [150, 150, 30, 30], "score": 0.8},
]


def coco_ap50(truth_file, results) -> float:
    """AP50 by COCO's own code."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        for annotation in truth.dataset["annotations"]:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[1]


def test_detections_in_a_crowd_are_neither_right_nor_wrong(tmp_path):
    file = write_truth(tmp_path / "t.json", CROWD, images=[1], classes={1: "person", 2: "dog"})
    (errors,) = run_tide(file_truth(file), read_detections(write_results(tmp_path / "r.json", FOUND))).errors
    assert errors.ap == pytest.approx(100.0) == pytest.approx(coco_ap50(file, FOUND))
    assert errors.dap == pytest.approx(dict.fromkeys([*ERROR_TYPES, *SPECIAL_TYPES], 0.0))
    assert sum(errors.counts.values()) == 0


def test_a_crowd_excuses_its_own_class_only(tmp_path):
    file = write_truth(tmp_path / "t.json", CROWD, images=[1], classes={1: "person", 2: "dog"})
    found = [*FOUND, {"image_id": 1, "category_id": 2, "bbox": [110, 110, 20, 20], "score": 0.9}]
    (errors,) = run_tide(file_truth(file), read_detections(write_results(tmp_path / "r.json", found))).errors
    assert errors.ap == pytest.approx(75.0) == pytest.approx(coco_ap50(file, found))
    assert errors.counts["Bkg"] == 1 and errors.dap["Bkg"] == pytest.approx(25.0)


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_cocos_on_random_data_with_crowds(tmp_path, seed):
    files = noisy(tmp_path, seed)
    (errors,) = run_tide(file_truth(files[0]), read_detections(files[1])).errors
    expected = coco_ap50(files[0], json.loads(files[1].read_text()))
    # The two add up precision at 101 recalls that differ by rounding; a bar more or less is 1/101.
    assert errors.ap_of_true_classes == pytest.approx(expected, abs=0.5)
    assert errors.ap < errors.ap_of_true_classes


def test_a_class_without_objects_is_said_to_lower_the_ap(tmp_path):
    files = noisy(tmp_path, 0)
    report = run_tide(file_truth(files[0]), read_detections(files[1]))
    assert report.classes_without_truth == ["never"]
    (note,) = report.notes()
    assert "1 classes have detections but no true box (never)" in note
    assert f"AP is {report.errors[0].ap_of_true_classes:.1f} at 0.5" in note
    assert report.errors[0].ap == pytest.approx(report.errors[0].ap_of_true_classes * 3 / 4)


def nothing() -> Detections:
    return Detections("nothing", *np.zeros((2, 0), dtype=np.int64), np.zeros((0, 4)), np.zeros(0))


def test_no_detection_at_all_misses_everything(tmp_path):
    truth = file_truth(noisy(tmp_path, 0)[0])
    (errors,) = run_tide(truth, nothing()).errors
    assert errors.ap == 0.0
    assert errors.dap == dict.fromkeys(ERROR_TYPES, 0.0) | {"Miss": 100.0, "FalsePos": 0.0, "FalseNeg": 100.0}
    assert errors.counts == dict.fromkeys(ERROR_TYPES, 0) | {"Miss": int((~truth.crowd).sum())}
    assert errors.classification_share is None


def test_only_detections_in_crowds_miss_everything_too(tmp_path):
    file = write_truth(tmp_path / "t.json", CROWD, images=[1], classes={1: "person", 2: "dog"})
    detections = read_detections(write_results(tmp_path / "r.json", FOUND[2:]))
    (errors,) = run_tide(file_truth(file), detections).errors
    assert (errors.dap["Miss"], errors.dap["FalseNeg"], errors.dap["FalsePos"]) == (100.0, 100.0, 0.0)


def test_split_between_class_and_place(tmp_path):
    boxes = [[10 + 60 * k, 10, 40, 40] for k in range(4)]
    truth = [{"image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0} for box in boxes]
    truth += [{"image_id": 1, "category_id": 2, "bbox": [10, 200, 40, 40], "iscrowd": 0}]
    found = [
        {"image_id": 1, "category_id": 1, "bbox": boxes[0], "score": 0.9},
        # IoU 1/3: right class, wrong place
        {"image_id": 1, "category_id": 1, "bbox": [90, 10, 40, 40], "score": 0.8},
        # right place, wrong class
        {"image_id": 1, "category_id": 2, "bbox": boxes[2], "score": 0.7},
        {"image_id": 1, "category_id": 2, "bbox": [10, 200, 40, 40], "score": 0.6},
    ]
    file = write_truth(tmp_path / "t.json", truth, images=[1], classes={1: "a", 2: "b"})
    (errors,) = run_tide(file_truth(file), read_detections(write_results(tmp_path / "r.json", found))).errors
    assert {name: count for name, count in errors.counts.items() if count} == {"Cls": 1, "Loc": 1, "Miss": 1}
    assert errors.dap["Cls"] > errors.dap["Loc"] > 0
    share = errors.dap["Cls"] / (errors.dap["Cls"] + errors.dap["Loc"])
    assert errors.classification_share == pytest.approx(share)
    markdown = tide_markdown([run_tide(file_truth(file), read_detections(tmp_path / "r.json", "a|b\nc"))])
    assert "| a\\|b c" in markdown and f"{share:.0%}" in markdown


def test_json_holds_everything_unrounded(tmp_path):
    files = crowded(tmp_path)
    report = run_tide(file_truth(files[0]), read_detections(files[1]), thresholds=(0.5, 0.75))
    content = json.loads(json.dumps(tide_json([report], "truth.json")))
    (detector,) = content["detectors"]
    assert detector["notes"] == report.notes() and detector["most_detections"] == 150
    assert [t["threshold"] for t in detector["thresholds"]] == [0.5, 0.75]
    first = detector["thresholds"][0]
    assert first["dap"] == dict(report.errors[0].dap) and first["ap"] == report.errors[0].ap
    assert first["ap_with_tidecv_limit"] == report.ap_with_tidecv_limit[0] < 70


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"thresholds": ()}, "one or more different numbers"),
        ({"thresholds": (0.5, 0.5)}, "one or more different numbers"),
        ({"thresholds": (1.0,)}, "threshold 1 with background 0.1"),
        ({"background": 0.6}, "threshold 0.5 with background 0.6"),
        ({"background": -0.1}, "background -0.1"),
        ({"thresholds": (float("nan"),)}, "threshold nan"),
        ({"limit": 0}, "0 detections per image"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, options, said):
    truth = file_truth(noisy(tmp_path, 0, images=2)[0])
    with pytest.raises(ConfigError, match=said):
        run_tide(truth, nothing(), **options)


@pytest.mark.parametrize("annotations", [[], CROWD[1:2]])
def test_nothing_to_judge_by(tmp_path, annotations):
    file = write_truth(tmp_path / "t.json", annotations, images=[1], classes={1: "a"})
    with pytest.raises(DatasetError, match=r"t\.json has no true box"):
        run_tide(file_truth(file), nothing())
