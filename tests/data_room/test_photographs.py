"""Photographs fetched by name: conversion of the published files, checked contents, clear refusals."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.error
from pathlib import Path

import pytest

from mokd_det.data import photographs
from mokd_det.data.photographs import PHOTOGRAPHS, annotation_digest, fetch, voc_to_coco
from mokd_det.errors import DatasetError
from mokd_det.tools.fetch import main as fetch_command

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def voc(name, size, objects):
    """A Pascal VOC document."""
    items = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0:g}</xmin><ymin>{y0:g}</ymin><xmax>{x1:g}</xmax>"
        f"<ymax>{y1:g}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{items}</annotation>"
    ).encode()


def pack(path, files):
    """An archive as GitHub makes them: one folder around everything."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"set-abc/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_voc_boxes_are_scaled_to_hundredths():
    # 378 × 504 → 240 × 320: times 320/504
    content = voc_to_coco(
        [voc("IMG_2383.JPG", (378, 504), [("ace", 97, 136, 275, 368)])], ("ace", "jack"), longest_side=320
    )
    assert content["images"] == [{"id": 1, "file_name": "IMG_2383.jpg", "width": 240, "height": 320}]
    assert content["annotations"][0]["bbox"] == [61.59, 86.35, 113.02, 147.3]
    assert content["annotations"][0]["area"] == 16647.85


def test_an_unknown_class_names_the_document():
    with pytest.raises(DatasetError, match=r"annotation 1 \(a.jpg\)"):
        voc_to_coco([voc("a.jpg", (4, 4), [("queen", 0, 0, 1, 1)])], ("ace",))


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="needs the photographs of ../shared/data")
def test_the_archive_of_blood_cells_becomes_the_pinned_contents(tmp_path):
    files = {"LICENSE": (SHARED / "bccd" / "LICENSE").read_bytes()}
    for split in ("train", "val", "test"):
        content = json.loads((SHARED / "bccd" / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = [
                (names[a["category_id"]], x, y, x + w, y + h) for a in boxes for x, y, w, h in [a["bbox"]]
            ]
            stem = Path(image["file_name"]).stem
            document = voc(image["file_name"], (image["width"], image["height"]), objects)
            files[f"BCCD/Annotations/{stem}.xml"] = document
            source = SHARED / "bccd" / "images" / image["file_name"]
            files[f"BCCD/JPEGImages/{stem}.jpg"] = source.read_bytes()
        listed = "\n".join(Path(image["file_name"]).stem for image in content["images"])
        files[f"BCCD/ImageSets/Main/{split}.txt"] = listed.encode()
    archive = pack(tmp_path / "bccd.tar.gz", files)
    assert fetch("bccd", tmp_path / "data", archive)
    assert not fetch("bccd", tmp_path / "data", archive)
    made = tmp_path / "data" / "bccd" / "val.json"
    assert annotation_digest(made) == PHOTOGRAPHS["bccd"].digests["val"]

    made.write_text(made.read_text().replace('"RBC"', '"red"'))
    with pytest.raises(DatasetError, match="is there, but its val are not those of bccd"):
        fetch("bccd", tmp_path / "data", archive)


def test_other_contents_leave_nothing_behind(tmp_path):
    files = {"LICENSE": b"MIT"}
    for split in ("train", "val", "test"):
        files[f"BCCD/ImageSets/Main/{split}.txt"] = split.encode()
        files[f"BCCD/Annotations/{split}.xml"] = voc(f"{split}.jpg", (4, 4), [("RBC", 0, 0, 2, 2)])
        files[f"BCCD/JPEGImages/{split}.jpg"] = b"not the published one"
    archive = pack(tmp_path / "bccd.tar.gz", files)
    with pytest.raises(DatasetError, match="train, val, test, images have not the pinned SHA-256"):
        fetch("bccd", tmp_path / "data", archive)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"), [(None, "is not the archive of"), ({"README": b""}, "is not the archive of")]
)
def test_a_file_that_is_not_the_archive(tmp_path, files, message):
    path = tmp_path / "bccd.tar.gz"
    path.write_bytes(b"<html>404") if files is None else pack(path, files)
    with pytest.raises(DatasetError, match=message):
        fetch("bccd", tmp_path / "data", path)


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    def no_network(*arguments, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(photographs, "download", no_network)
    assert fetch_command(["cards", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: https://github.com/") and "--archive FILE" in error
    assert error.count("\n") == 1
    assert fetch_command(["birds", "--root", str(tmp_path)]) == 2
    assert "known: bccd, cards, cifar10_jpeg" in capsys.readouterr().err
