"""COCO's box metrics at their ends: the truth itself, nothing at all, and predictions that cannot be
meant."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image
from torch import nn

from mokd_det.data import DetrDatasetMapper, build_test_loader, register_coco_format
from mokd_det.data.truth import file_truth
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation import CocoDetectionEvaluator
from tests.forks import spawn

SIZE = 200
# image id → boxes xywh and category ids; ids leave a gap, sizes cover all three of COCO's ranges, image 3 is
# empty
TRUTH = {
    1: [([10, 10, 20, 20], 2), ([50, 50, 60, 60], 5)],
    2: [([0, 0, 150, 150], 5), ([150, 150, 30, 30], 2)],
    3: [],
    4: [([20.5, 30.25, 40, 50], 9)],
}
CLASSES = {2: 0, 5: 1, 9: 2}


@pytest.fixture
def name(tmp_path):
    """:data:`TRUTH` as a registered data set; its annotations have neither area nor iscrowd, and begin with
    id 0."""
    content = {
        "categories": [{"id": id_, "name": f"class{id_}"} for id_ in CLASSES],
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in TRUTH],
        "annotations": [
            {"image_id": i, "bbox": box, "category_id": category}
            for i, objects in TRUTH.items()
            for box, category in objects
        ],
    }
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    for i in TRUTH:
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"{i}.png")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_format("tiny_truth", tmp_path / "truth.json", tmp_path)
    yield "tiny_truth"
    DatasetCatalog.remove("tiny_truth")
    MetadataCatalog.remove("tiny_truth")


def predictions(image_id, objects=None, classes=CLASSES):
    """Instances in Detectron2's output format."""
    objects = TRUTH[image_id] if objects is None else objects
    instances = Instances((SIZE, SIZE))
    boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.linspace(0.9, 0.5, len(objects))
    instances.pred_classes = torch.tensor([classes[c] for _, c in objects], dtype=torch.int64)
    return instances


def run(evaluator, outputs):
    """Results for {image id: instances}."""
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_truth_as_prediction_is_100_everywhere(name):
    results = run(CocoDetectionEvaluator(name), {i: predictions(i) for i in TRUTH})
    assert set(results) == {"bbox"}
    assert results["bbox"] == pytest.approx(
        dict.fromkeys(
            ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-class2", "AP-class5", "AP-class9"], 100.0
        )
    )


def test_no_box_at_all_is_zero_everywhere(name):
    results = run(CocoDetectionEvaluator(name), {i: predictions(i, []) for i in TRUTH})
    assert results["bbox"] == dict.fromkeys(
        ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-class2", "AP-class5", "AP-class9"], 0.0
    )


def test_no_image_processed_is_zero_too(name):
    assert run(CocoDetectionEvaluator(name), {})["bbox"]["AP"] == 0.0


def test_zero_and_nothing_agree_where_there_is_no_truth(name):
    """Image 4 has one medium box of class9: the other metrics do not exist, with and without predictions."""
    evaluator = CocoDetectionEvaluator(name)
    evaluator.reset()
    nothing = evaluator.evaluate(img_ids=[4])["bbox"]
    evaluator.process([{"image_id": 4}], [{"instances": predictions(4)}])
    right = evaluator.evaluate(img_ids=[4])["bbox"]
    assert {k for k, v in nothing.items() if math.isnan(v)} == {"APs", "APl", "AP-class2", "AP-class5"}
    assert {k for k, v in right.items() if math.isnan(v)} == {"APs", "APl", "AP-class2", "AP-class5"}
    assert nothing["APm"] == 0.0 and right["APm"] == pytest.approx(100.0)


def test_a_wrong_class_costs_its_two_classes_only(name):
    outputs = {i: predictions(i) for i in TRUTH}
    outputs[4] = predictions(4, [(TRUTH[4][0][0], 2)])
    results = run(CocoDetectionEvaluator(name), outputs)["bbox"]
    assert results["AP-class9"] == 0.0
    assert results["AP-class5"] == pytest.approx(100.0)
    assert results["AP"] < 67


def test_equals_detectron2_on_a_file_that_it_can_read(tmp_path):
    content = {
        "info": {},
        "categories": [{"id": id_, "name": f"class{id_}"} for id_ in CLASSES],
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in TRUTH],
        "annotations": [],
    }
    for i, objects in TRUTH.items():
        for box, category in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": i,
                    "bbox": box,
                    "category_id": category,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    (tmp_path / "full.json").write_text(json.dumps(content))
    register_coco_format("tiny_full", tmp_path / "full.json", tmp_path)
    try:
        generator = torch.Generator().manual_seed(0)
        outputs = {}
        for i, objects in TRUTH.items():
            moved = [([v + 6 * float(torch.rand((), generator=generator)) for v in b], c) for b, c in objects]
            outputs[i] = predictions(i, [*moved, ([5, 5, 30, 40], 2)])
        ours = run(CocoDetectionEvaluator("tiny_full"), outputs)
        theirs = run(COCOEvaluator("tiny_full", tasks=("bbox",), use_fast_impl=False), outputs)
        assert ours == {"bbox": pytest.approx(dict(theirs["bbox"]), nan_ok=True)}
        assert 5 < ours["bbox"]["AP"] < 95
    finally:
        DatasetCatalog.remove("tiny_full")
        MetadataCatalog.remove("tiny_full")


def test_evaluating_twice_gives_the_same(name):
    evaluator = CocoDetectionEvaluator(name)
    first = run(evaluator, {i: predictions(i) for i in TRUTH})
    assert evaluator.evaluate() == first


def test_unknown_class_is_named(name):
    evaluator = CocoDetectionEvaluator(name)
    evaluator.reset()
    for wrong in (3, -1):
        instances = predictions(2, classes={2: 0, 5: wrong})
        with pytest.raises(ConfigError, match=f"image id 2: predicted class {wrong}, but 'tiny_truth' has 3"):
            evaluator.process([{"image_id": 2}], [{"instances": instances}])


def test_unknown_image_is_named(name):
    evaluator = CocoDetectionEvaluator(name)
    with pytest.raises(DatasetError, match="prediction for image id 77, which 'tiny_truth' does not have"):
        evaluator.process([{"image_id": 77}], [{"instances": predictions(1)}])


def test_output_of_something_else_than_a_detector(name):
    evaluator = CocoDetectionEvaluator(name)
    with pytest.raises(ConfigError, match=r"image id 1 has no 'instances' but \['sem_seg'\]"):
        evaluator.process([{"image_id": 1}], [{"sem_seg": torch.zeros(3)}])


def test_heads_indexed_by_dataset_ids(name):
    """Spare rows (ids that the file does not use, up to the largest) are left out; larger ones are an
    error."""
    evaluator = CocoDetectionEvaluator(name, predicts_dataset_ids=True)
    same = {id_: id_ for id_ in range(12)}
    outputs = {
        i: predictions(i, [*TRUTH[i], ([1, 1, 9, 9], 3), ([1, 1, 9, 9], 0)], classes=same) for i in TRUTH
    }
    assert run(evaluator, outputs)["bbox"]["AP"] == pytest.approx(100.0)
    with pytest.raises(ConfigError, match=r"predicted class 10, .*\(0 to 9 can be predicted\)"):
        run(evaluator, {1: predictions(1, [([1, 1, 9, 9], 10)], classes=same)})


def test_unknown_dataset():
    with pytest.raises(DatasetError, match="unknown data set 'digits_vall'; did you mean 'digits_val'"):
        CocoDetectionEvaluator("digits_vall")


def test_missing_file_of_the_dataset(tmp_path):
    register_coco_format("tiny_gone", tmp_path / "gone.json", tmp_path, hint="write it")
    try:
        with pytest.raises(DatasetError, match=r"gone\.json does not exist; write it"):
            CocoDetectionEvaluator("tiny_gone")
    finally:
        DatasetCatalog.remove("tiny_gone")
        MetadataCatalog.remove("tiny_gone")


# What people's own files hold: the right values, by both backends.

BACKENDS = ("hotcoco", "pycocotools")


def metrics(path, annotations, outputs, backend, *, on_bad_box="error", encoding="utf-8"):
    """Metrics of one image of :data:`SIZE` with these annotations, read from a file."""
    content = {
        "categories": [{"id": 1, "name": "a"}],
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE, "width": SIZE}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, **a} for i, a in enumerate(annotations, 1)
        ],
    }
    (path / "own.json").write_text(json.dumps(content), encoding=encoding)
    register_coco_format("tiny_own", path / "own.json", path, on_bad_box=on_bad_box)
    try:
        found = predictions(1, [(box, 1) for box in outputs], classes={1: 0})
        return run(CocoDetectionEvaluator("tiny_own", backend=backend), {1: found})["bbox"]
    finally:
        DatasetCatalog.remove("tiny_own")
        MetadataCatalog.remove("tiny_own")


GOOD_BOXES = [[10, 10, 20, 20], [50, 50, 60, 60]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_left_out_are_not_missed(tmp_path, backend):
    bad = [[300, 10, 20, 20], [5, 5, 0, 10], [-50, 3, 20, 20]]
    annotations = [{"bbox": box} for box in (*bad, *GOOD_BOXES)]
    found = metrics(tmp_path, annotations, GOOD_BOXES, backend, on_bad_box="drop")
    assert found["AP"] == pytest.approx(100.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipped_boxes_are_clipped_in_the_evaluation_too(tmp_path, backend):
    """Of the file's box less than a quarter lies in the image; its area in the file is that of the whole."""
    annotations = [{"bbox": [150, 150, 100, 100], "area": 10_000}, {"bbox": [-30, 20, 60, 30], "area": 1800}]
    found = metrics(tmp_path, annotations, [[150, 150, 50, 50], [0, 20, 30, 30]], backend)
    assert found["AP"] == pytest.approx(100.0)
    # 50² is medium and 30² small; 100² would be large.
    assert [found[key] for key in ("APm", "APs")] == pytest.approx([100.0] * 2) and math.isnan(found["APl"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("area", [None, -1, 0, math.nan, math.inf, "400", True, [400], 10**400], ids=str)
def test_an_area_that_is_none_is_width_times_height(tmp_path, backend, area):
    annotations = [{"bbox": box, "area": area} for box in GOOD_BOXES]
    found = metrics(tmp_path, annotations, GOOD_BOXES, backend)
    assert [found[key] for key in ("AP", "APs", "APm")] == pytest.approx([100.0] * 3) and math.isnan(
        found["APl"]
    )


def test_the_loader_warns_of_such_an_area(tmp_path, caplog):
    content = {
        "categories": [{"id": 1, "name": "a"}],
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE, "width": SIZE}],
        "annotations": [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": None}],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, logger="mokd_det"):
        truth = file_truth(tmp_path / "own.json")
    assert truth.areas.tolist() == [12.0]
    assert (
        "own.json: annotation id 4 has area=None, which is no finite number above 0; width times"
        in caplog.text
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_areas_of_masks_are_kept(tmp_path, backend):
    """A box of 60 x 60 whose mask is small counts as small, as COCO has it."""
    found = metrics(tmp_path, [{"bbox": [50, 50, 60, 60], "area": 900.0}], [[50, 50, 60, 60]], backend)
    assert found["APs"] == pytest.approx(100.0) and math.isnan(found["APm"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, backend, encoding):
    found = metrics(tmp_path, [{"bbox": b} for b in GOOD_BOXES], GOOD_BOXES, backend, encoding=encoding)
    assert found["AP"] == pytest.approx(100.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_sets_of_another_loader(backend):
    """Without any file: names as image ids, areas and crowds as the records say."""
    records = [
        {
            "file_name": f"{name}.png",
            "image_id": name,
            "height": SIZE,
            "width": SIZE,
            "annotations": [
                {"bbox": [-10, 10, 40, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "area": "?"},
                {"bbox": [100, 100, 50, 50], "bbox_mode": 1, "category_id": 0, "iscrowd": 1},
            ],
        }
        for name in ("left", "right")
    ]
    DatasetCatalog.register("tiny_records", lambda: records)
    MetadataCatalog.get("tiny_records").thing_classes = ["a", "b"]
    try:
        evaluator = CocoDetectionEvaluator("tiny_records", backend=backend)
        outputs = {name: predictions(1, [([0, 10, 40, 30], 5)]) for name in ("left", "right")}
        found = run(evaluator, outputs)["bbox"]
        assert [found[key] for key in ("AP-b", "AP", "APm")] == pytest.approx([100.0] * 3)
        assert math.isnan(found["AP-a"])
    finally:
        DatasetCatalog.remove("tiny_records")
        MetadataCatalog.remove("tiny_records")


def test_files_registered_by_detectron2s_own_function(tmp_path):
    content = {
        "categories": [{"id": 7, "name": "a"}],
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE, "width": SIZE}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 7, "bbox": [50, 50, 60, 60], "area": 900, "iscrowd": 0}
        ],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_instances("tiny_theirs", {}, str(tmp_path / "own.json"), str(tmp_path))
    try:
        evaluator = CocoDetectionEvaluator("tiny_theirs")
        found = run(evaluator, {1: predictions(1, [([50, 50, 60, 60], 7)], classes={7: 0})})["bbox"]
        assert found["APs"] == pytest.approx(100.0)
    finally:
        DatasetCatalog.remove("tiny_theirs")
        MetadataCatalog.remove("tiny_theirs")


class _Oracle(nn.Module):
    """Predicts the truth of every image."""

    def forward(self, batch):
        return [{"instances": predictions(sample["image_id"])} for sample in batch]


def test_with_detectron2s_inference_loop_and_output_folder(name, tmp_path):
    loader = build_test_loader(name, DetrDatasetMapper(is_train=False, augmentation=[]), batch_size=2)
    results = inference_on_dataset(_Oracle(), loader, CocoDetectionEvaluator(name, str(tmp_path / "out")))
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert sorted(r["category_id"] for r in written) == [2, 2, 5, 5, 9]


def _rank(rank, folder):
    # Detectron2 asks for the local group when it gathers.
    comm.create_local_process_group(2)
    register_coco_format("tiny_truth", f"{folder}/truth.json", folder)
    evaluator = CocoDetectionEvaluator("tiny_truth")
    ids = list(TRUTH)[rank::2]
    found = [run(evaluator, {i: predictions(i, objects) for i in ids}) for objects in (None, [])]
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))


def test_two_processes_evaluate_their_joint_predictions(name, tmp_path):
    spawn(_rank, tmp_path)
    right, nothing = json.loads((tmp_path / "rank0.json").read_text())
    assert json.loads((tmp_path / "rank1.json").read_text()) == [{}, {}]
    assert right["bbox"]["AP"] == pytest.approx(100.0)
    assert nothing["bbox"]["AP"] == 0.0
