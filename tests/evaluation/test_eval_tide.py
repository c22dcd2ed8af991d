"""tools/eval_tide.py from the command line: result files, models it runs itself, and mistakes."""

from __future__ import annotations

import json

import pytest
from matplotlib.image import imread

from mokd_det.data.truth import file_truth
from mokd_det.evaluation.detection_file import read_detections
from mokd_det.evaluation.tide import TideErrors, TideReport, run_tide
from mokd_det.tools import eval_tide
from mokd_det.visualization.tide_bars import tide_figure
from tests.evaluation.detection_samples import crowded, noisy, write_results
from tests.report.tiny_run import tiny_run


def test_two_result_files_side_by_side(tmp_path, capsys):
    truth, found = noisy(tmp_path, 0)
    perfect = [
        {"image_id": int(i), "category_id": int(c), "bbox": b.tolist(), "score": 1.0}
        for i, c, b, crowd in zip(
            *(getattr(file_truth(truth), n) for n in ("image_ids", "category_ids", "boxes", "crowd"))
        )
        if not crowd
    ]
    other = write_results(tmp_path / "perfect.json", perfect)
    out = tmp_path / "out"
    command = [str(found), str(other), "--annotations", str(truth), "--thresholds", "0.5", "0.75"]
    assert eval_tide.main([*command, "--labels", "noisy $x", "perfect", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    expected = run_tide(file_truth(truth), read_detections(found), thresholds=(0.5, 0.75))
    for errors in expected.errors:
        cells = [f"{errors.ap:.2f}", *(f"{value:.2f}" for value in errors.dap.values())]
        assert " ".join(["noisy $x", *cells]) in " ".join(said.replace("|", " ").split())
    assert "perfect 100.00 0.00" in " ".join(said.replace("|", " ").split())
    content = json.loads((out / "tide.json").read_text())
    assert [d["name"] for d in content["detectors"]] == ["noisy $x", "perfect"]
    assert content["detectors"][0]["thresholds"][1]["dap"] == dict(expected.errors[1].dap)
    assert said.startswith("AP and dAP") and (out / "tide.md").read_text().count("| noisy $x") == 4
    # Two rows of axes, something drawn in each.
    picture = imread(out / "tide.png")[..., :3]
    assert picture.shape[0] > 700 and picture.shape[1] == 1650
    for half in (picture[150:400], picture[-300:]):
        assert (half.min(axis=(0, 1)) < 0.3).all() and (half > 0.99).mean() > 0.5


def test_crowded_images_are_told_of(tmp_path, capsys):
    truth, found = crowded(tmp_path)
    assert eval_tide.main([str(found), "--annotations", str(truth)]) == 0
    said = capsys.readouterr().out
    assert "- perfect: 2 images have more than 100 detections" in said and "100.00" in said
    assert eval_tide.main([str(found), "--annotations", str(truth), "--max-dets", "100"]) == 0
    assert "| perfect    | 67.00" in capsys.readouterr().out


def test_unknown_ids_are_dropped_if_asked_for(tmp_path, capsys):
    truth, found = noisy(tmp_path, 0)
    content = json.loads(found.read_text())
    assert eval_tide.main([str(found), "--annotations", str(truth)]) == 0
    without = capsys.readouterr().out
    content.append({"image_id": 999, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5})
    write_results(found, content)
    assert eval_tide.main([str(found), "--annotations", str(truth)]) == 2
    assert "image id 999" in capsys.readouterr().err
    assert eval_tide.main([str(found), "--annotations", str(truth), "--drop-unknown"]) == 0
    captured = capsys.readouterr()
    assert captured.out == without
    assert "1 detections of unknown images or categories are left out" in captured.err


def test_models_are_run(tmp_path, capsys):
    """An untrained student, once as a run's directory and once by config and weights, and its detections again."""
    run = tiny_run(tmp_path)
    out = tmp_path / "out"
    command = ["--run", str(run.directory), "--model", str(run.directory / "config.yaml"), str(run.weights)]
    assert eval_tide.main([*command, "--labels", "a", "b", "--output", str(out)]) == 0
    content = json.loads((out / "tide.json").read_text())
    first, second = content["detectors"]
    assert first["thresholds"] == second["thresholds"] and first["most_detections"] > 0
    results = json.loads((out / "detections" / "0" / "results.json").read_text())["bbox"]
    assert first["thresholds"][0]["ap_of_classes_with_truth"] == pytest.approx(results["AP50"], abs=0.5)
    # The detections that it wrote give the same again.
    capsys.readouterr()
    file = out / "detections" / "0" / "coco_instances_results.json"
    again = [str(file), "--dataset", run.dataset, "--labels", "a", "--output", str(tmp_path / "again")]
    assert eval_tide.main(again) == 0
    repeated = json.loads((tmp_path / "again" / "tide.json").read_text())["detectors"][0]
    assert repeated == first
    assert "Accumulating" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["FOUND"], "give --annotations FILE.json or --dataset NAME"),
        (["FOUND", "--annotations", "TRUTH", "--dataset", "digits_test"], "not both"),
        (["FOUND", "--dataset", "digit_test"], "unknown data set 'digit_test'; did you mean"),
        (["FOUND", "FOUND", "--annotations", "TRUTH"], "two detectors are called alike"),
        (["FOUND", "--annotations", "TRUTH", "--labels", "a", "b"], "--labels gives 2 names for 1 detectors"),
        (["FOUND", "--annotations", "TRUTH", "--thresholds", "50"], "threshold 50 with background 0.1"),
        (["FOUND", "--annotations", "TRUTH", "--max-dets", "0"], "0 detections per image"),
        (["TRUTH", "--annotations", "TRUTH"], "is an annotation file, not a result file"),
        (["FOUND", "--annotations", "FOUND"], "the top level is a list"),
        (["--run", "DIR", "--dataset", "digits_test"], "no config.yaml there"),
        (["DIR", "--annotations", "TRUTH"], "cannot be read: Is a directory"),
        (["--model", "none.py", "none.pth", "--annotations", "TRUTH"], "a model needs images"),
        (["--model", "none.py", "none.pth"], "config file 'none.py' does not exist"),
        (["FOUND", "--annotations", "TRUTH", "--output", "TRUTH"], "cannot be made"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, said):
    truth, found = noisy(tmp_path, 0, images=3)
    (tmp_path / "empty").mkdir()
    places = {"TRUTH": str(truth), "FOUND": str(found), "DIR": str(tmp_path / "empty")}
    assert eval_tide.main([places.get(a, a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_nothing_to_do_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        eval_tide.main([])
    assert caught.value.code == 2 and "give a RESULT, a --run or a --model" in capsys.readouterr().err


def report(name: str, *thresholds: float) -> TideReport:
    dap = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "FalseNeg"), 0.0)
    return TideReport(
        name, [TideErrors(t, 0.1, 100.0, 100.0, dap, dap) for t in thresholds], None, 0, 0, [], 0, []
    )


def test_a_picture_without_any_error_can_be_drawn():
    figure = tide_figure([report("perfect", 0.5)])
    assert len(figure.axes) == 3
    assert "nothing lost" in [text.get_text() for text in figure.axes[2].texts]


def test_pictures_need_equal_thresholds():
    with pytest.raises(ValueError, match="same thresholds"):
        tide_figure([report("a", 0.5), report("b", 0.75)])
    with pytest.raises(ValueError, match="same thresholds"):
        tide_figure([])
