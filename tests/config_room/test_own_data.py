"""Own data in one command: the shipped configs of ``configs/custom`` on three classes with ids 3, 17 and 90."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mokd_det.checkpoint import load_file
from mokd_det.config import load_config
from mokd_det.engine import argument_parser
from mokd_det.engine.preflight import check_run
from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.tools import demo, export
from mokd_det.tools.train_net import main, train
from tests.engine.helpers import loggers_restored

CONFIGS = Path(__file__).parents[2] / "configs" / "custom"
MOKD = CONFIGS / "mokd_vidt_nano.py"
ALONE = CONFIGS / "vidt_nano.py"
CATEGORIES = {90: "bolt", 3: "screw", 17: "nut"}

_AUGMENTATION = "dataloader.train.mapper.augmentation"


def small(*models: str) -> list[str]:
    """Overrides that make ViDTs at these keys, their images and their batches tiny."""
    sizes = ("backbone.embed_dim=24", "backbone.depths=[1,1,1,1]", "backbone.num_heads=[3,6,12,24]")
    decoder = ("transformer.num_layers=1", "transformer.ffn_dim=64")
    return [
        f"{_AUGMENTATION}.short_sides=[32]",
        f"{_AUGMENTATION}.crop_prob=0.0",
        "dataloader.test.mapper.augmentation.short_side=32",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "data.total_batch_size=2",
        *(f"{model}.{setting}" for model in models for setting in (*sizes, *decoder)),
    ]


DISTILLED = small("model.student", "model.teacher")


@pytest.fixture(autouse=True)
def catalogs() -> Iterator[None]:
    before = [set(catalog.data) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, known in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog.data) - known:
            catalog.data.pop(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits in a folder, to be named by relative paths, and two detectors of seven and three classes."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(root / split / f"{i}.png")
            images.append({"id": 7 + 10 * i, "file_name": f"{i}.png", "width": 32, "height": 40})
            annotations += [
                {"id": 100 * i + id_, "image_id": 7 + 10 * i, "category_id": id_, "bbox": [2, 3, 20, 30]}
                for id_ in list(CATEGORIES)[: i + 1]
            ]
        content = {
            "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
            "images": images,
            "annotations": annotations,
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    cfg = load_config(MOKD, [*DISTILLED, *paths(root), "model.teacher_checkpoint="])
    for classes in (7, 3):
        cfg.model.teacher.num_classes = classes
        torch.manual_seed(classes)
        torch.save({"model": instantiate(cfg.model.teacher).state_dict()}, root / f"classes{classes}.pth")
    return root


def paths(root: Path | None = None) -> list[str]:
    prefix = f"{root}/" if root is not None else ""
    return [
        f"data.{split}.{key}={prefix}{split}{'.json' if key == 'json' else ''}"
        for split in ("train", "val")
        for key in ("json", "images")
    ]


def run(config: Path, output: Path, *arguments: str) -> str:
    """Runs the tool in this process; returns its log."""
    parsed = argument_parser("test").parse_intermixed_args(
        ["--config-file", str(config), f"train.output_dir={output}", "train.device=cpu", *arguments]
    )
    with loggers_restored():
        train(parsed)
    return (output / "log.txt").read_text()


def test_one_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    weights = ("model.teacher_checkpoint=classes7.pth", "train.init_checkpoint=classes7.pth")
    log = run(MOKD, tmp_path, *DISTILLED, *paths(), *weights, "train.max_iter=2")
    assert "Own data: 3 classes (screw, nut, bolt); 4 images, 2 iterations" in log
    told = [line for line in log.splitlines() if "distilling on tokens only" in line]
    assert len(told) == 1
    assert "The teacher's file has 7 classes, the data 3" in told[0]
    assert "re-initialised" in log and "[7, 256] in the file, [3, 256] here" in log
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all(f"bbox/AP-{name}" in metrics[-1] for name in CATEGORIES.values())
    assert {"loss_distill_patch", "loss_distill_neck", "loss_distill_head"} <= set(metrics[0])
    trained = load_file(tmp_path / "student_final.pth")["model"]
    assert len(trained["class_embed.0.weight"]) == 3
    # What is not a class head started from the file.
    start = load_file(folder / "classes7.pth")["model"]
    moved = (trained["backbone.det_token"] - start["backbone.det_token"]).abs().max()
    assert 0 < moved < 1e-3

    # The saved configuration evaluates the result, with the validation data alone.
    student = f"train.init_checkpoint={tmp_path / 'student_final.pth'}"
    again = tmp_path / "again"
    run(tmp_path / "config.yaml", again, "--eval-only", student, "data.train.json=", "data.train.images=")
    results = json.loads((again / "results.json").read_text())["bbox"]
    assert results["AP"] == pytest.approx(metrics[-1]["bbox/AP"], abs=1e-6)
    with pytest.raises(CheckpointError, match="has 7 classes, the model 3"):
        run(
            MOKD,
            again,
            *small("model.student"),
            *paths(),
            "--eval-only",
            "train.init_checkpoint=classes7.pth",
        )


def test_names_and_paths_are_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command: a class name is no reference, a path needs no quotes, "~" is home."""
    root = tmp_path / "Küche (2), #1"
    root.mkdir()
    name, second = "{a}${b}", r"back\\${c}"
    for split in ("train", "val"):
        (root / split).symlink_to(folder / split)
        content = json.loads((folder / f"{split}.json").read_text())
        content["categories"][0]["name"], content["categories"][1]["name"] = name, second
        (root / f"{split}.json").write_text(json.dumps(content), encoding="utf-8-sig")
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = [*small("model"), *paths(Path("~") / root.name), "train.init_checkpoint=", "train.max_iter=1"]
    place = [f"train.output_dir=~/{root.name}/run", "train.device=cpu"]
    with loggers_restored():
        assert main(["--config-file", str(ALONE), *arguments, *place]) == 0
    results = (root / "run" / "metrics.json").read_text().splitlines()
    assert {f"bbox/AP-{name}", f"bbox/AP-{second}"} <= set(json.loads(results[-1]))
    again = load_config(root / "run" / "config.yaml")
    assert set(again.from_data.class_names) == {name, second, "nut"}

    # A size that is wrong shows before training, in both splits.
    content["images"][2]["width"] += 1
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(content))
        shutil.rmtree(root / "run", ignore_errors=True)
        capsys.readouterr()
        assert main(["--config-file", str(ALONE), "--dry-run", *arguments, *place]) == 2
        assert "2.png (image id 27) has height 40 and width 32, but its annotation" in capsys.readouterr().err
    assert main(["--config-file", str(ALONE), *arguments, *place]) == 2
    assert "val/2.png (image id 27) has height 40" in capsys.readouterr().err and not (root / "run").exists()


def test_a_trained_model_away_from_its_data(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its saved configuration knows the classes: it is exported and looks at other images; an evaluation needs data."""
    data = tmp_path / "data"
    shutil.copytree(folder, data, ignore=shutil.ignore_patterns("*.pth"))
    place = f"train.output_dir={tmp_path / 'run'}"
    with loggers_restored():
        unlabeled = f"data.unlabeled.images={data / 'train'}"
        teacher = f"model.teacher_checkpoint={folder / 'classes7.pth'}"
        short = ["train.init_checkpoint=", "train.max_iter=1", "train.eval_period=0"]
        moving = [*short, *DISTILLED, *paths(data), unlabeled, teacher, place, "train.device=cpu"]
        assert main(["--config-file", str(MOKD), *moving, "dataloader.train.draw={count: 2, seed: 1}"]) == 0
    data.rename(tmp_path / "elsewhere")
    config, weights = tmp_path / "run" / "config.yaml", tmp_path / "run" / "student_final.pth"
    capsys.readouterr()
    given = ["--config-file", str(config), "--weights", str(weights)]
    assert export.main([*given, str(tmp_path / "plain.safetensors")]) == 0
    image, names = str(tmp_path / "elsewhere" / "val" / "0.png"), str(tmp_path / "elsewhere" / "val.json")
    looked = [
        image,
        "--run",
        str(tmp_path / "run"),
        "--output",
        str(tmp_path / "found"),
        "--annotations",
        names,
    ]
    assert demo.main(looked) == 0
    with loggers_restored():
        evaluation = [
            "--eval-only",
            f"train.init_checkpoint={weights}",
            f"train.output_dir={tmp_path / 'again'}",
        ]
        assert main(["--config-file", str(config), *evaluation]) == 2
        assert f"error: data set file {data / 'val.json'} does not exist" in capsys.readouterr().err
        # Of the training data an evaluation needs nothing.
        assert main(["--config-file", str(config), *evaluation, *paths(tmp_path / "elsewhere")[2:]]) == 0


def test_a_teacher_of_as_many_classes_is_no_news(folder: Path, tmp_path: Path) -> None:
    teacher = f"model.teacher_checkpoint={folder / 'classes3.pth'}"
    no_start = ("train.init_checkpoint=", "train.max_iter=1", "data.val=null")
    log = run(MOKD, tmp_path, *DISTILLED, *paths(folder)[:2], teacher, *no_start)
    assert "Own data: 3 classes" in log and "tokens only" not in log
    metrics = (tmp_path / "metrics.json").read_text()
    assert "loss_distill_head" in metrics and "bbox/AP" not in metrics


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*vidt*.py")), ids=lambda path: path.stem)
def test_every_config(path: Path, folder: Path) -> None:
    distills = path.stem.startswith("mokd")
    teacher = ["model.teacher_checkpoint="] if distills else []
    cfg = load_config(path, [*paths(folder), "data.total_batch_size=4", "data.epochs=10", *teacher])
    model = cfg.model.student if distills else cfg.model
    assert (model.num_classes, model.criterion.num_classes) == (3, 3)
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.period) == (10, 1, 1)
    assert cfg.optimizer.lr == pytest.approx(5e-5)
    assert cfg.dataloader.test.dataset == cfg.dataloader.evaluator.dataset_name == cfg.from_data.val_dataset
    assert cfg.train.init_on_class_mismatch == "reinit"
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier(0.0) < 0.05 and multiplier(1.0) < 0.01 and multiplier(0.1) > 0.9


def test_the_teacher_keeps_the_classes_of_its_file(folder: Path) -> None:
    cfg = load_config(
        MOKD, [*DISTILLED, *paths(folder), f"model.teacher_checkpoint={folder / 'classes7.pth'}#model"]
    )
    assert cfg.model.teacher.num_classes == 7 and cfg.model.student.num_classes == 3
    model = instantiate(cfg.model)
    assert model.teacher.num_classes == 7
    assert torch.equal(
        model.teacher.class_embed[0].weight,
        load_file(folder / "classes7.pth")["model"]["class_embed.0.weight"],
    )


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([], r"^data\.train\.json, data\.train\.images, data\.val\.json, data\.val\.images are not given"),
        (["data.train.jsn=a"], r"^unknown config key 'data\.train\.jsn'; did you mean 'data\.train\.json'\?"),
        (["from_data.num_classes=4"], "from_data is filled in from the files that data names"),
        (["data.train.json=a${x}b"], r"^data\.train\.json refers to 'x', but there is no 'x'"),
        (["data={_target_: builtins.dict}"], r"^data must be a mokd_det\.data\.OwnData, not dict"),
    ],
)
def test_mistakes_of_the_command_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ALONE, overrides)


def test_mistakes_about_the_models(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.num_classes is 5, but the data has 3 classes: screw, nut, bolt"
    ):
        load_config(ALONE, [*paths(folder), "data.total_batch_size=2", "model.num_classes=5"])


def test_a_teacher_that_is_trained_later_is_taken_to_have_the_datas_classes(folder: Path) -> None:
    given = [*paths(folder), "data.total_batch_size=2", "model.teacher_checkpoint=none.pth"]
    config = load_config(MOKD, given)
    assert config.from_data.teacher_classes == config.from_data.num_classes == 3
    # A training with it is refused.
    with pytest.raises(CheckpointError, match=r"none\.pth.* does not exist"):
        arguments = ["--config-file", str(MOKD), *given, "train.init_checkpoint="]
        check_run(argument_parser("test").parse_args(arguments))
