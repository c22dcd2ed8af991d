"""tools/report.py: what is on the page, that it is well-formed, escaped and leads nowhere, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree.ElementTree import ParseError

import pytest

from mokd_det.report import group_runs, read_record, report_page
from mokd_det.tools import report
from tests.report.page_check import parse, section, words
from tests.report.tiny_run import tiny_run, write_metrics

SCRIPT = "<script>alert(1)<"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two untrained detectors, one in a directory with a name that is HTML, and their page."""
    root = tmp_path_factory.mktemp("report")
    first = tiny_run(root, "plain")
    second = tiny_run(root, f'{SCRIPT} & "b"', config="quickstart/student.py", dataset=first.dataset)
    output = root / "page.html"
    command = [
        str(first.directory),
        str(second.directory),
        "--output",
        str(output),
        "--pictures",
        "3",
        "--score",
        "0",
    ]
    assert report.main(command) == 0
    return first, second, output.read_text(encoding="utf-8")


def curves(part):
    """The lines of its charts: they say whose they are."""
    return [path for path in part.iter("path") if path.find("title") is not None]


def test_the_page_is_well_formed_and_needs_nothing_else(made):
    root = parse(made[2])
    assert root.get("lang") == "en"
    names = [node.get("id") for node in root.iter("section")]
    assert names == [
        *["overview", "results", "losses", "weights", "conflict", "classes"],
        *["errors", "predictions", "attention", "speed", "configuration"],
    ]
    assert [a.get("href") for a in root.iter("a")] == [f"#{name}" for name in names]


@pytest.mark.parametrize(
    "broken",
    [
        "<p>",
        "<a href='https:x'>x</a>",
        "<img src='x.png' alt='x' />",
        "<p onclick='x'>x</p>",
        "<script>x</script>",
    ],
)
def test_the_check_of_pages_finds_what_is_wrong(made, broken):
    with pytest.raises((AssertionError, ParseError)):
        parse(made[2].replace("</main>", f"{broken}</main>"))


def test_names_of_directories_and_classes_are_text(made):
    _, second, page = made
    root = parse(page)
    assert "<script" not in page.lower().replace("&lt;script", "")
    assert second.directory.name in words(section(root, "overview"))
    assert "<script>alert(1)</script>" in words(section(root, "classes"))


def test_what_the_runs_have_logged_is_there(made):
    root = parse(made[2])
    overview = words(section(root, "overview"))
    assert "34.5 AP on the validation data" in overview and "MoKD Amortized" in overview
    assert "none (trained alone) FixedWeights" in overview and "APl" not in overview
    assert "AP50 on the validation data" in words(section(root, "results"))
    assert "Objective “task”" in words(section(root, "losses"))
    assert "π of “distill”" in words(section(root, "weights"))
    conflict = words(section(root, "conflict"))
    assert "Conflict of distill ↔ task, all" in conflict and "Dominance of distill ↔ task" in conflict
    assert "Effective rank of the target, neck" in conflict
    for id_, least in (("results", 2), ("losses", 2), ("weights", 2), ("conflict", 3)):
        assert len(curves(section(root, id_))) >= least
    assert "0.200 s" in words(section(root, "speed"))
    settings = words(section(root, "configuration"))
    assert "settings that differ" in settings and "_target_: mokd_det.distillation.Distiller" in settings


def test_what_the_models_do_is_there(made):
    first, _, page = made
    root = parse(page)
    errors = words(section(root, "errors"))
    assert f"TIDE on 6 of 6 images of {first.dataset}" in errors
    assert all(
        name in errors
        for name in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "Class against place")
    )
    pictures = list(section(root, "predictions").iter("svg"))
    assert len(pictures) == 3 * 3
    assert all(len(list(p.iter("image"))) == 1 and len(list(p.iter("path"))) > 2 for p in pictures)
    attention = section(root, "attention")
    assert len(list(attention.iter("img"))) == 2 and "plain" in words(attention)
    speed = words(section(root, "speed"))
    assert "553,420" in speed and "CPU" in speed


def test_without_models_the_logs_alone_make_a_page(made, tmp_path):
    output = tmp_path / "new" / "page.html"
    assert (
        report.main([str(made[0].directory), "--no-models", "--output", str(output), "--title", SCRIPT]) == 0
    )
    root = parse(output.read_text())
    assert root.find("head/title").text == SCRIPT
    for id_ in ("errors", "predictions", "attention"):
        assert section(root, id_).find("p[@class='absent']") is not None
    assert not list(section(root, "predictions").iter("svg"))


def test_the_page_lies_in_the_run_by_default(made, tmp_path, capsys):
    run = tmp_path / "copy"
    shutil.copytree(made[0].directory, run)
    (run / "attention").mkdir()
    (run / "attention" / "head <1>.png").write_bytes(b"\x89PNG")
    assert report.main([str(run), "--no-models"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    root = parse((run / "report.html").read_text())
    (image,) = section(root, "attention").iter("img")
    assert image.get("alt") == "copy: head <1>" and image.get("src").startswith("data:image/png;base64,iVBO")


def test_a_run_that_is_not_finished_is_said_to_be(tmp_path, capsys):
    write_metrics(tmp_path / "young", "bbox/AP")
    (tmp_path / "young" / "config.yaml").write_text("train: {max_iter: 500}\n", encoding="utf-8")
    assert report.main([str(tmp_path / "young")]) == 2
    assert "does not define 'objectives'" in capsys.readouterr().err
    (tmp_path / "young" / "config.yaml").write_text("train: {max_iter: 500}\nobjectives: {task: [loss_*]}\n")
    assert report.main([str(tmp_path / "young")]) == 0
    assert "the training is not finished" in capsys.readouterr().err
    root = parse((tmp_path / "young" / "report.html").read_text())
    assert "101 of 500 iterations" in words(section(root, "overview"))
    assert "not finished" in words(section(root, "errors"))


def test_next_to_nothing_logged_is_a_page_too(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "lr": 0.1}\n')
    assert report.main([str(tmp_path)]) == 0
    root = parse((tmp_path / "report.html").read_text())
    for id_ in (
        "results",
        "losses",
        "weights",
        "conflict",
        "classes",
        "errors",
        "predictions",
        "configuration",
    ):
        assert section(root, id_).find("p[@class='absent']") is not None
    assert "never evaluated" in words(section(root, "overview"))


def test_a_classification_run(tmp_path):
    run = tiny_run(tmp_path, config="quickstart_classification/mokd.py")
    assert report.main([str(run.directory), "--pictures", "4"]) == 0
    root = parse((run.directory / "report.html").read_text())
    overview = words(section(root, "overview"))
    assert "34.5 top1 on the validation data" in overview and "AP" not in overview
    assert "MoKD + LogitDistillation" in overview
    assert "top1 per class" in words(section(root, "classes"))
    assert not [node for node in root.iter("section") if node.get("id") == "errors"]
    stamps = section(root, "predictions")
    assert len(list(stamps.iter("img"))) == 4 and words(stamps).count("truth:") == 4
    assert "28,170" in words(section(root, "speed"))


def comparison(root: Path) -> Path:
    """A directory as a comparison leaves it, two methods with four replicates."""
    runs = []
    for method, gain in (("none", 0.0), ("mokd", 5.0)):
        for seed in range(4):
            place = f"runs/mokd/{method}_r{seed}"
            write_metrics(root / place, "bbox/AP")
            (root / place / "test").mkdir()
            results = {"bbox": {"AP": 40 + seed % 2 + gain, "AP-0": 50.0, "APl": None}}
            (root / place / "test" / "results.json").write_text(json.dumps(results))
            runs.append(
                {
                    "student": "mokd",
                    "method": method,
                    "label": "student <alone>" if method == "none" else "MoKD",
                    "replicate": seed,
                    "half": "limited" if seed > 1 else "full",
                    "final": 40 + seed % 2 + gain,
                    "iterations": [50, 100],
                    "validation": [12.5, 34.5],
                    "seconds_per_iteration": 0.2,
                    "directory": place,
                    "command": "",
                }
            )
    content = {
        "metric": "AP",
        "final_on": "digits_test",
        "baseline": "none",
        "references": {"mokd": 34.5},
        "runs": runs,
    }
    (root / "comparison.json").write_text(json.dumps(content))
    return root


def test_a_comparison(tmp_path):
    assert report.main([str(comparison(tmp_path)), "--no-models"]) == 0
    root = parse((tmp_path / "report.html").read_text())
    said = words(section(root, "comparison"))
    assert "MoKD minus student <alone>: +5.0 AP, better" in said and "AP on digits_test" in said
    overview = words(section(root, "overview"))
    assert "40.5 AP on the test data, mean of 4 seeds" in overview and "45.5 ± " in overview
    # Four replicates are one line with a band.
    results = section(root, "results")
    charts = len(list(results.iter("svg")))
    assert charts > 0
    assert len(curves(results)) == 2 * charts
    # AP50 was evaluated once, which is a point.
    assert sum("fill-opacity" in path.get("style", "") for path in results.iter("path")) == 2
    assert "8 runs" in words(root.find("body/header"))


def test_seeds_by_equal_labels(tmp_path):
    for name in "ab":
        write_metrics(tmp_path / name, "bbox/AP")
    groups = group_runs([read_record(tmp_path / "a", "x"), read_record(tmp_path / "b", "x")])
    assert [(g.label, len(g.runs)) for g in groups] == [("x", 2)]
    root = parse(report_page("t", groups))
    assert "mean of 2 seeds" in words(section(root, "overview"))


def test_directories_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert report.distinct_names(paths) == ["x/run", "y/run", "z"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "none is no run's output directory"),
        (["RUN", "--labels", "a", "b"], "--labels gives 2 names for 1 runs"),
        (["RUN", "--images", "0"], "--images 0"),
        (["RUN", "--no-models", "--output", "RUN"], "cannot be written"),
        (["BROKEN"], "is not what a comparison writes"),
        (["RESULTS", "--no-models"], "is not what an evaluation writes"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, said):
    write_metrics(tmp_path / "run", "bbox/AP")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "comparison.json").write_text('{"runs": [{}]}')
    write_metrics(tmp_path / "results", "bbox/AP")
    (tmp_path / "results" / "results.json").write_text("[1]")
    places = {name.upper(): str(tmp_path / name) for name in ("run", "broken", "results")}
    assert report.main([places.get(a, a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err and captured.err.count("\n") == 1
