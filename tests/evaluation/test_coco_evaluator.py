"""COCO's box metrics at their ends: the truth itself, nothing at all, and predictions that cannot be
meant."""

from __future__ import annotations

import json
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn
from torch.multiprocessing import start_processes

from mokd_det.data import DetrDatasetMapper, build_test_loader, register_coco_format
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation import CocoDetectionEvaluator

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


def _rank(rank, world_size, init, name, queue):
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size)
    # Detectron2 asks for the local group when it gathers
    from detectron2.utils import comm

    comm.create_local_process_group(world_size)
    evaluator = CocoDetectionEvaluator(name)
    ids = list(TRUTH)[rank::world_size]
    queue.put(
        (
            rank,
            run(evaluator, {i: predictions(i) for i in ids}),
            run(evaluator, {i: predictions(i, []) for i in ids}),
        )
    )
    torch.distributed.destroy_process_group()


def test_two_processes_evaluate_their_joint_predictions(name, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    start_processes(
        _rank, (2, f"file://{tmp_path}/rendezvous", name, queue), nprocs=2, join=True, start_method="fork"
    )
    results = {rank: (right, nothing) for rank, right, nothing in (queue.get(), queue.get())}
    assert results[1] == ({}, {})
    assert results[0][0]["bbox"]["AP"] == pytest.approx(100.0)
    assert results[0][1]["bbox"]["AP"] == 0.0
