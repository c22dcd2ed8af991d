"""Checking a whole data set: every kind of problem is found and named, and good data has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mokd_det.data import check_dataset, coco_source, register_coco_format, report_as_json, report_as_text
from mokd_det.data.findings import CollectFindings, RaiseFirst
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.tools import check_dataset as check_dataset_tool

ROOT = Path(__file__).parents[2]


def found(report) -> dict[str, tuple[str, int]]:
    return {problem.kind: (problem.severity, problem.count) for problem in report.problems}


def test_good_data_has_no_problem(coco_files):
    report = check_dataset(coco_files().source(), image_check="decode")
    assert found(report) == {}
    assert (report.errors, report.warnings) == (0, 0)


def test_the_numbers(coco_files):
    numbers = check_dataset(coco_files().source()).statistics
    assert (numbers.images, numbers.images_without_boxes, numbers.boxes, numbers.crowds) == (3, 1, 3, 1)
    assert [(c.id, c.name, c.boxes, c.images, c.crowds) for c in numbers.classes] == [
        (3, "ant", 2, 2, 0),
        (7, "cat", 1, 1, 1),
    ]
    assert (numbers.image_width.min, numbers.image_width.median, numbers.image_width.max) == (24, 32, 40)
    assert numbers.image_aspect.max == pytest.approx(40 / 30)
    assert numbers.boxes_per_image.max == 2
    # widths 10, 32, 12.5; heights 8, 48, 15
    assert (numbers.box_width.min, numbers.box_width.median, numbers.box_height.max) == (10, 12.5, 48)
    assert numbers.box_share.max == 1.0
    assert (numbers.small, numbers.medium, numbers.large) == pytest.approx((2 / 3, 1 / 3, 0))
    assert numbers.distinct_image_sizes == 3
    assert dict(numbers.image_sizes) == {(40, 30): 1, (32, 48): 1, (24, 24): 1}


ANNOTATIONS = {
    "missing-key": (lambda c: c["annotations"][0].pop("bbox"), "annotation id 1 has no 'bbox'"),
    "wrong-type": (lambda c: c["annotations"][1].update(category_id="7"), "category_id='7'"),
    "repeated-id": (lambda c: c["annotations"][1].update(id=1), "the annotation id 1 occurs twice"),
    "repeated-name": (lambda c: c["categories"][0].update(name="ant"), "category name 'ant' occurs twice"),
    "size-not-positive": (lambda c: c["images"][2].update(width=-4), "image id 30 has width -4"),
    "unknown-image": (lambda c: c["annotations"][0].update(image_id=5), "belongs to image id 5"),
    "unknown-category": (lambda c: c["annotations"][0].update(category_id=8), "has category_id 8"),
    "malformed-box": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"has bbox [1, 2, 3]"),
    "box-not-finite": (lambda c: c["annotations"][0].update(bbox=[1, float("nan"), 3, 4]), "must be finite"),
    "box-without-area": (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), "annotation id 1 of image"),
    "box-outside": (
        lambda c: c["annotations"][0].update(bbox=[50, 2, 9, 4]),
        "annotation id 1 of image id 20",
    ),
    "file-missing": (
        lambda c: c["images"][0].update(file_name="none.png"),
        "none.png (image id 20) does not",
    ),
    "folder-unreadable": (lambda c: c["images"][0].update(file_name="none/a.png"), "none (of image id 20)"),
    "file-outside-root": (
        lambda c: c["images"][0].update(file_name="../images2/im20.png"),
        "file_name='../images2/im20.png', which leads out of the image folder",
    ),
    "size-mismatch": (lambda c: c["images"][2].update(height=25), "has height 24 and width 24, but its"),
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_errors_in_the_annotations(coco_files, kind):
    damage, message = ANNOTATIONS[kind]
    files = coco_files(damage)
    report = check_dataset(files.source())
    problem = next(problem for problem in report.problems if problem.kind == kind)
    assert (problem.severity, problem.count) == ("error", 1)
    assert message in problem.examples[0] and str(files.json_file) in problem.examples[0]
    assert problem.examples[0].removeprefix(f"{files.json_file}: ") in report_as_text(report)
    # The same checks stop a training, but for what only a look at the files shows.
    if kind != "size-mismatch":
        with pytest.raises(DatasetError) as error:
            files.load()
        assert str(error.value).startswith(problem.examples[0])


WARNINGS = {
    "box-reaches-out": (lambda c: c["annotations"][0].update(bbox=[1, 2, 60, 4]), "reaches 21 pixels out"),
    "repeated-file": (
        lambda c: c["images"].append({**c["images"][1], "id": 31, "file_name": "./im10.png"}),
        "image id 31 has the file of image id 10",
    ),
    "repeated-box": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9, "category_id": 3}),
        "annotation id 9 ('ant') has the box of annotation id 1 ('cat') on image id 20",
    ),
    "unused-category": (
        lambda c: c["categories"].append({"id": 4, "name": "bee"}),
        "category id 4 ('bee') has no box",
    ),
    "fractions-suspected": (
        lambda c: [a.update(bbox=[v / 50 for v in a["bbox"]]) for a in c["annotations"]],
        "the boxes seem to be fractions of the image's width and height, as YOLO has them: none of 4",
    ),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_warnings(coco_files, kind):
    damage, message = WARNINGS[kind]
    files = coco_files(damage)
    report = check_dataset(files.source(), image_check="decode")
    assert found(report) == {kind: ("warning", 1)}
    assert message in report.problems[0].examples[0]
    assert files.load()


def test_a_file_without_any_box(coco_files, caplog):
    files = coco_files(lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    assert found(check_dataset(files.source()))["no-boxes"] == ("warning", 1)
    files.load()
    assert "annotations.json: no image has a box: nothing can be learned from it" in caplog.text


def test_more_objects_than_queries(coco_files):
    report = check_dataset(coco_files().source(), max_objects=1)
    assert found(report) == {"crowded-image": ("warning", 1)}
    assert "im20.png (image id 20) has 2 objects" in report.problems[0].examples[0]


@pytest.mark.parametrize(
    "image_check, kinds", [("list", set()), ("header", set()), ("decode", {"file-undecodable"})]
)
def test_a_truncated_image_shows_when_decoded(coco_files, image_check, kinds):
    files = coco_files()
    path = files.image_root / "im10.png"
    path.write_bytes(path.read_bytes()[:-2000])
    assert set(found(check_dataset(files.source(), image_check=image_check))) == kinds


def test_a_file_that_is_no_image_shows_in_its_header(coco_files):
    files = coco_files()
    (files.image_root / "im10.png").write_bytes(b"")
    report = check_dataset(files.source())
    assert found(report) == {"file-undecodable": ("error", 1)}
    assert "(image id 10) cannot be decoded" in report.problems[0].examples[0]


def test_equal_contents_under_two_names(coco_files):
    def add(content):
        content["images"].append({**content["images"][1], "id": 40, "file_name": "copy.png"})

    files = coco_files(add)
    shutil.copy(files.image_root / "im10.png", files.image_root / "copy.png")
    assert found(check_dataset(files.source())) == {}
    report = check_dataset(files.source(), image_check="decode")
    assert found(report) == {"repeated-content": ("warning", 1)}
    assert "copy.png (image id 40) has the same content as image" in report.problems[0].examples[0]


@pytest.mark.parametrize("image_check", ["header", "decode"])
def test_the_orientation_in_the_header_counts(coco_files, image_check):
    files = coco_files(lambda c: c["images"][1].update(file_name="turned.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    # Stored lying, shown standing: 32 wide and 48 high.
    Image.new("RGB", (48, 32)).save(files.image_root / "turned.jpg", exif=exif)
    assert found(check_dataset(files.source(), image_check=image_check)) == {}


def test_workers_find_the_same(coco_files):
    files = coco_files(lambda c: c["images"][2].update(height=25))
    (files.image_root / "im20.png").write_bytes(b"x")
    reports = [report_as_json(check_dataset(files.source(), num_workers=n)) for n in (0, 2)]
    assert reports[0] == reports[1]
    assert reports[0]["errors"] == 2


def test_all_are_counted_and_a_few_shown(coco_files):
    def damage(content):
        for annotation in content["annotations"]:
            annotation["category_id"] = 99

    report = check_dataset(coco_files(damage).source(), max_examples=2)
    problem = report.problems[0]
    assert (problem.kind, problem.count, len(problem.examples)) == ("unknown-category", 4, 2)
    assert "… and 2 more" in report_as_text(report)


def test_what_follows_from_a_problem_is_not_reported(coco_files):
    # The boxes of an image without a size, or of an annotation without a category, cannot be judged.
    def damage(content):
        content["images"][0]["width"] = 0
        content["annotations"][1].update(category_id=99, bbox=[0, 0, 0, 0])

    assert set(found(check_dataset(coco_files(damage).source()))) == {
        "size-not-positive",
        "unknown-category",
    }


def test_categories_of_entries_with_an_error_are_not_called_unused(coco_files):
    """But another one without a box is."""

    def damage(content):
        content["categories"].append({"id": 4, "name": "bee"})
        for annotation in content["annotations"]:
            if annotation["category_id"] == 3:
                annotation["bbox"] = [1, 2]

    report = check_dataset(coco_files(damage).source())
    assert found(report) == {"malformed-box": ("error", 2), "unused-category": ("warning", 1)}
    assert "'bee'" in report.problems[1].examples[0]


SPELLINGS = {
    "backslash": ("deep\\im20.png", "deep/im20.png", "folders are separated by backslashes"),
    "url": ("deep/a%20b%C3%A9.png", "deep/a b\u00e9.png", "the name is URL-encoded"),
    "unicode": ("caf\u00e9.png", "cafe\u0301.png", "its letters are composed otherwise in Unicode"),
    "case": ("deep/IM20.PNG", "Deep/im20.png", "upper and lower case differ"),
    "suffix": ("im20.jpg", "im20.jpeg", "its suffix is another one"),
    "space": ("im20.png ", "im20.png", "spaces around the name"),
    "folder": ("images/deep/im20.png", "deep/im20.png", "its folder is another one"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_files_under_another_spelling_are_named_with_the_cause(coco_files, case):
    written, real, cause = SPELLINGS[case]
    files = coco_files()
    target = files.image_root / real
    target.parent.mkdir(exist_ok=True)
    (files.image_root / "im20.png").rename(target)
    content = json.loads(files.json_file.read_text())
    content["images"][0]["file_name"] = written
    files.json_file.write_text(json.dumps(content))
    (problem,) = check_dataset(files.source()).problems
    assert problem.kind in ("file-missing", "folder-unreadable")
    assert problem.examples[0].endswith(f"; there is {real!r} ({cause})")


def test_corners_are_suspected(coco_files):
    """[x0, y0, x1, y1] in place of [x, y, width, height]."""

    def damage(content):
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]

    report = check_dataset(coco_files(damage).source())
    assert found(report) == {"corners-suspected": ("warning", 1), "box-reaches-out": ("warning", 1)}
    assert "the boxes seem to be corners [x0, y0, x1, y1]: 1 of 4 reach out" in report.problems[0].examples[0]


def test_nothing_usable_is_still_a_report(coco_files):
    def damage(content):
        for image in content["images"]:
            image["width"] = None

    report = check_dataset(coco_files(damage).source())
    assert (report.statistics.images, report.statistics.boxes, report.errors) == (0, 0, 3)
    assert "0 images" in report_as_text(report)
    assert json.dumps(report_as_json(report), allow_nan=False)


def test_dropped_boxes_are_warnings(coco_files):
    files = coco_files(lambda c: c["annotations"][0].update(bbox=[50, 2, 9, 4]))
    report = check_dataset(files.source(on_bad_box="drop"))
    assert found(report) == {
        "box-outside": ("warning", 1),
        "unused-category": ("warning", 1),
    }


@pytest.mark.parametrize("image_check", ["header", "decode"])
@pytest.mark.parametrize(
    ("turn", "cause"),
    [(6, "the file's EXIF orientation turns it by 90 degrees"), (1, "width and height are exchanged")],
)
def test_a_size_that_is_turned_says_so(coco_files, image_check, turn, cause):
    files = coco_files(lambda c: c["images"][1].update(file_name="turned.jpg", width=48, height=32))
    exif = Image.Exif()
    exif[0x0112] = turn
    size = (48, 32) if turn == 6 else (32, 48)
    Image.new("RGB", size).save(files.image_root / "turned.jpg", exif=exif)
    problems = check_dataset(files.source(), image_check=image_check).problems
    (message,) = next(p.examples for p in problems if p.kind == "size-mismatch")
    assert cause in message


def test_unknown_image_check(coco_files):
    with pytest.raises(ConfigError, match="image_check='all'; it must be one of list, header, decode"):
        check_dataset(coco_files().source(), image_check="all")


def test_raise_first_counts_the_others():
    with pytest.raises(DatasetError, match=r"^entry 4 \(and 1 more like it\); mend it$"):
        RaiseFirst().add("kind", [4, 7], lambda i: f"entry {i}", hint="mend it")
    collected = CollectFindings(max_examples=1)
    collected.add("kind", np.array([4, 7]), lambda i: f"entry {i}")
    collected.add("kind", [9], lambda i: f"entry {i}")
    assert (collected.problems[0].count, collected.problems[0].examples) == (3, ["entry 4"])


def test_registered_names(coco_files):
    files = coco_files()
    register_coco_format("tiny_checked", files.json_file, files.image_root)
    assert coco_source("tiny_checked").json_file == str(files.json_file)
    assert coco_source("coco_2017_val").on_bad_box == "drop"
    DatasetCatalog.register("tiny_function", list)
    assert coco_source("tiny_function") is None
    with pytest.raises(DatasetError, match="did you mean 'tiny_checked'"):
        coco_source("tiny_cheked")


# --- the tool ----------------------------------------------------------------------------------------------


def test_the_tool_writes_everything(coco_files, tmp_path, capsys):
    files = coco_files()
    (files.image_root / "im30.png").write_bytes(b"broken")
    output = tmp_path / "report"
    arguments = [str(files.json_file), str(files.image_root), "--output", str(output), "--json"]
    assert check_dataset_tool.main(arguments) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["errors"] == 1 and content["problems"][0]["kind"] == "file-undecodable"
    assert json.loads((output / "report.json").read_text()) == content
    assert "1 errors: training would refuse" in (output / "report.txt").read_text()
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
        pixels = np.asarray(sheet.convert("RGB"))
    first = check_dataset_tool.main([*arguments, "--seed", "0"])
    with Image.open(output / "contact_sheet.png") as sheet:
        assert first == 1 and np.array_equal(pixels, np.asarray(sheet.convert("RGB")))


def test_the_exit_status(coco_files, capsys):
    files = coco_files(WARNINGS["repeated-box"][0])
    paths = [str(files.json_file), str(files.image_root)]
    tool = check_dataset_tool
    assert tool.main(paths) == 0
    text = capsys.readouterr().out
    assert "3 images (1 without boxes), 4 boxes, 1 crowd, 2 classes" in text and "1 warnings" in text
    assert tool.main([*paths, "--strict"]) == 1
    for arguments, message in (
        ([paths[0]], "error: give an annotation file and the folder of its images"),
        (["no_such_name"], "error: unknown data set 'no_such_name'"),
        ([paths[0], "nowhere"], "error: there is no image folder 'nowhere'"),
        (["none.json", paths[1]], "error: data set file none.json does not exist"),
        ([*paths, "--samples", "0"], "error: --samples is 0; it must be 1 or more"),
    ):
        assert tool.main(arguments) == 2
        assert capsys.readouterr().err.startswith(message)
    files.json_file.write_text("{}")
    assert tool.main(paths) == 2
    assert "the key 'images' is missing" in capsys.readouterr().err


def test_bad_boxes_can_be_announced(coco_files, capsys):
    files = coco_files(ANNOTATIONS["box-outside"][0])
    paths = [str(files.json_file), str(files.image_root)]
    assert check_dataset_tool.main(paths) == 1
    assert check_dataset_tool.main([*paths, "--drop-bad-boxes"]) == 0
