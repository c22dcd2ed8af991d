"""The bundled scenes: reproducible, disjoint between splits, tightly boxed, written all at once."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from mokd_det.data import load_coco_format
from mokd_det.data.coco_format import CocoFormatSource
from mokd_det.data.digits import (
    KINDS,
    SPLITS,
    SceneStyle,
    annotation_file,
    compose_scene,
    generate,
    image_folder,
    source_digits,
)
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.tools.make_digits import main

COUNTS = {"train": 40, "val": 15, "test": 15}


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, tmp_path_factory):
    """(kind, root) of generated data."""
    root = tmp_path_factory.mktemp("data")
    assert generate(request.param, root, seed=3, counts=COUNTS)
    return request.param, root


def contents(folder):
    """All files below a folder: JSON as bytes, images as pixels."""
    return {
        str(file.relative_to(folder)): (
            np.asarray(Image.open(file)).tobytes() if file.suffix == ".png" else file.read_bytes()
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def annotations(kind, root, split):
    return json.loads(annotation_file(root / kind, split).read_text())


def test_two_runs_are_equal(made, tmp_path):
    kind, root = made
    generate(kind, tmp_path, seed=3, counts=COUNTS)
    assert contents(tmp_path / kind) == contents(root / kind)


def test_another_seed_gives_other_scenes(made, tmp_path):
    kind, root = made
    generate(kind, tmp_path, seed=4, counts=COUNTS)
    ours, theirs = contents(root / kind), contents(tmp_path / kind)
    assert ours.keys() == theirs.keys()
    assert not any(ours[name] == theirs[name] for name in ours)


def test_counts_do_not_change_the_scenes(made, tmp_path):
    kind, root = made
    generate(kind, tmp_path, seed=3, counts={"train": 5, "val": 1, "test": 1})
    few, many = contents(tmp_path / kind), contents(root / kind)
    for name in ("train/000005.png", "val/000001.png", "test/000001.png"):
        assert few[name] == many[name]


def test_files_pass_the_checks_and_have_the_promised_counts(made):
    kind, root = made
    for split in SPLITS:
        source = CocoFormatSource(
            None, str(annotation_file(root / kind, split)), str(image_folder(root / kind, split))
        )
        records = load_coco_format(source)
        assert len(records) == COUNTS[split]
        sizes = {(record["width"], record["height"]) for record in records}
        assert sizes == {(KINDS[kind].image_size,) * 2}
        low, high = KINDS[kind].digits_per_image
        assert all(low <= len(record["annotations"]) <= high for record in records)


def test_categories_are_named_by_their_digit_and_all_occur(made):
    count = 3 if made[0] == "digits_few" else 10
    assert annotations(*made, "val")["categories"] == [{"id": d + 1, "name": str(d)} for d in range(count)]
    found = {a["category_id"] for a in annotations(*made, "train")["annotations"]}
    assert found == set(range(1, count + 1))


def test_labels_are_those_of_the_source_digits(made):
    from sklearn.datasets import load_digits

    target = load_digits().target
    for split in SPLITS:
        for annotation in annotations(*made, split)["annotations"]:
            assert target[annotation["source_digit"]] == annotation["category_id"] - 1


def test_splits_share_no_source_digit(made):
    used = [{a["source_digit"] for a in annotations(*made, split)["annotations"]} for split in SPLITS]
    for i, one in enumerate(used):
        for other in used[i + 1 :]:
            assert one.isdisjoint(other)


def test_source_digits_are_a_partition_with_every_class_in_every_split():
    sources = source_digits(0)
    everything = np.concatenate([part for split in SPLITS for part in sources[split]])
    assert sorted(everything.tolist()) == list(range(1797))
    assert [len(sources[split]) for split in SPLITS] == [10, 10, 10]
    shares = {split: sum(map(len, sources[split])) / 1797 for split in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.005)
    assert min(len(part) for split in SPLITS for part in sources[split]) >= 20


def test_digit_sizes(made):
    kind, root = made
    low, high = KINDS[kind].digit_size
    long_sides = [max(a["bbox"][2:]) for s in SPLITS for a in annotations(kind, root, s)["annotations"]]
    # an overlapping digit may hide the border of another one
    assert max(long_sides) <= high and min(long_sides) >= 0.75 * low
    assert np.quantile(long_sides, 0.05) >= low - 1
    assert max(long_sides) - min(long_sides) > 0.7 * (high - low)


def test_easy_scenes_are_bright_digits_on_dark_ground(tmp_path):
    generate("digits", tmp_path, counts=COUNTS)
    content = annotations("digits", tmp_path, "train")
    for image in content["images"]:
        pixels = np.asarray(
            Image.open(image_folder(tmp_path / "digits", "train") / image["file_name"])
        ).astype(int)
        inside = np.zeros(pixels.shape[:2], bool)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                inside[y : y + h, x : x + w] = True
                digit = pixels[y : y + h, x : x + w]
                assert digit.max() >= 150
        # the faint rim of a digit may stand outside its box, blended at most to the visibility threshold
        assert (pixels[~inside] <= 0.7 * 110 + 0.3 * 255).all()
        assert np.median(pixels[~inside]) <= 110


def test_boxes_are_tight_around_the_visible_digit():
    """On a black ground with white digits that may not touch, every box is the extent of its bright
    pixels."""
    black = SceneStyle(
        image_size=64,
        digits_per_image=(2, 2),
        digit_size=(16, 24),
        max_overlap=0.0,
        background=lambda rng, size, split: (np.zeros((size, size, 3)), {}),
        colour=lambda rng, behind: np.full(3, 255.0),
    )
    from sklearn.datasets import load_digits

    digits, sources = load_digits().images, source_digits(0)["train"]
    for seed in range(20):
        scene = compose_scene(black, digits, sources, "train", np.random.default_rng(seed))
        visible = scene.image[..., 0] >= 0.3 * 255
        covered = np.zeros_like(visible)
        for x, y, w, h in scene.boxes:
            part = visible[y : y + h, x : x + w]
            assert part.any(axis=0)[[0, -1]].all() and part.any(axis=1)[[0, -1]].all()
            covered[y : y + h, x : x + w] = True
        assert not (visible & ~covered).any()


def test_boxes_show_what_later_digits_leave_visible():
    """Opaque squares, each of its own grey: a box is the extent of its grey, and what is hidden has none."""
    hidden = partly = 0
    for seed in range(60):
        greys = iter(range(40, 256, 40))
        style = SceneStyle(
            image_size=40,
            digits_per_image=(4, 4),
            digit_size=(4, 30),
            max_overlap=1.0,
            background=lambda rng, size, split: (np.zeros((size, size, 3)), {}),
            colour=lambda rng, behind, greys=greys: np.full(3, float(next(greys))),
        )
        squares = np.full((10, 8, 8), 16.0)
        sources = [np.array([digit]) for digit in range(10)]
        scene = compose_scene(style, squares, sources, "train", np.random.default_rng(seed))
        expected = []
        for grey in range(40, 161, 40):
            rows, columns = np.nonzero(scene.image[..., 0] == grey)
            if len(rows):
                x, y = columns.min(), rows.min()
                expected.append([x, y, columns.max() - x + 1, rows.max() - y + 1])
        assert scene.boxes.tolist() == expected
        assert len(scene.labels) == len(scene.sources) == len(expected)
        assert scene.labels.tolist() == scene.sources.tolist()
        hidden += len(expected) < 4
        partly += any(w != h for _, _, w, h in expected)
    assert hidden and partly


def test_boxes_of_a_scene_overlap_little(made):
    kind, root = made
    for split in SPLITS:
        by_image: dict[int, list] = {}
        for annotation in annotations(kind, root, split)["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
        for boxes in by_image.values():
            for i, (ax, ay, aw, ah) in enumerate(boxes):
                for bx, by, bw, bh in boxes[i + 1 :]:
                    w = min(ax + aw, bx + bw) - max(ax, bx)
                    h = min(ay + ah, by + bh) - max(ay, by)
                    share = max(w, 0) * max(h, 0) / min(aw * ah, bw * bh)
                    # a box shrinks where its digit is hidden: the share can exceed the placement's limit a
                    # little
                    assert share <= 1.5 * KINDS[kind].max_overlap


def test_hard_scenes_use_all_backgrounds_and_disjoint_photo_parts(tmp_path):
    generate("digits_hard", tmp_path, counts={"train": 60, "val": 60, "test": 60})
    spans: dict[str, list] = {}
    for split in SPLITS:
        backgrounds = [image["background"] for image in annotations("digits_hard", tmp_path, split)["images"]]
        assert {b["type"] for b in backgrounds} == {"gradient", "noise", "photo"}
        for background in backgrounds:
            if background["type"] == "photo":
                x, _, side, _ = background["box"]
                spans.setdefault(background["file"], []).append((x, x + side, split))
    assert set(spans) == {"china.jpg", "flower.jpg"}
    for crops in spans.values():
        for start, end, split in crops:
            assert all(end <= s or e <= start for s, e, other in crops if other != split)


def test_second_run_does_nothing(made):
    kind, root = made
    before = {file: file.stat().st_mtime_ns for file in (root / kind).rglob("*")}
    assert generate(kind, root, seed=3, counts=COUNTS) is False
    assert {file: file.stat().st_mtime_ns for file in (root / kind).rglob("*")} == before


SMALL = {"train": 2, "val": 1, "test": 1}


def _remove_manifest(folder):
    (folder / "manifest.json").unlink()


def _remove_image(folder):
    (folder / "train" / "000002.png").unlink()


def _cut_annotations(folder):
    file = folder / "annotations" / "val.json"
    file.write_bytes(file.read_bytes()[:-20])


def _garble_manifest(folder):
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize("damage", [_remove_manifest, _remove_image, _cut_annotations, _garble_manifest])
def test_incomplete_folder_is_redone(tmp_path, damage):
    generate("digits", tmp_path, counts=SMALL)
    good = contents(tmp_path / "digits")
    damage(tmp_path / "digits")
    assert generate("digits", tmp_path, counts=SMALL) is True
    assert contents(tmp_path / "digits") == good


def test_other_arguments_replace_the_folder(tmp_path):
    generate("digits", tmp_path, counts=SMALL)
    assert generate("digits", tmp_path, seed=1, counts={**SMALL, "train": 1}) is True
    assert len(list((tmp_path / "digits" / "train").iterdir())) == 1


def test_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = iter(range(2))

    def interrupted(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return compose_scene(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("mokd_det.data.digits.compose_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate("digits", tmp_path, counts=SMALL)
    assert not (tmp_path / "digits").exists()
    assert generate("digits", tmp_path, counts=SMALL) is True
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_processes_that_generate_at_once_write_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        calls = [pool.apply_async(generate, ("digits", tmp_path), {"counts": SMALL}) for _ in range(3)]
        assert sorted(call.get(timeout=60) for call in calls) == [False, False, True]
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_foreign_files_are_never_removed(tmp_path):
    precious = tmp_path / "digits" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years")
    with pytest.raises(
        DatasetError, match=r"digits holds files that the generator did not write \(thesis\.txt\)"
    ):
        generate("digits", tmp_path, counts=SMALL)
    assert precious.read_text() == "years"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "letters"}, "unknown kind of scenes 'letters'; known: digits, digits_hard"),
        ({"seed": -1}, "seed=-1"),
        ({"counts": {"train": 1, "val": 0, "test": 1}}, "counts=.*at least one image"),
        ({"counts": {"train": 1}}, "counts=.*train, val, test"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        generate(**{"kind": "digits", "root": tmp_path, "counts": SMALL, **arguments})


def test_command(tmp_path, capsys):
    arguments = ["digits", "--root", str(tmp_path), "--train", "2", "--val", "1", "--test", "1"]
    assert main(arguments) == 0
    assert f"{tmp_path}/digits: 4 images" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert main(["letters", "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: unknown kind of scenes 'letters'")


def test_command_follows_detectron2s_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert main(["--train", "1", "--val", "1", "--test", "1"]) == 0
    for kind in KINDS:
        assert (tmp_path / kind / "manifest.json").is_file()
