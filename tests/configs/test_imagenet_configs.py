"""Every shipped config of ImageNet is built by the real code and takes a step on small random images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from mokd_det.classification import ClassificationBatch
from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import Distiller
from mokd_det.engine.build import build_trainer

IMAGENET = Path(__file__).parents[2] / "configs" / "ImageNet"
KD, KL = "loss_distill_kd_pooled", "loss_distill_kl_kl"
# method → (distillation losses, objectives, whether the student has a distillation token)
METHODS: dict[str, tuple[set[str], tuple[str, ...], bool]] = {
    "": (set(), ("task",), False),
    "kd_": ({"loss_distill_kl"}, ("distill", "task"), False),
    "hard_": ({"loss_distill_hard"}, ("distill", "task"), True),
    "soft_": ({"loss_distill_kl"}, ("distill", "task"), True),
    "vkd_": ({KD, KL}, ("distill", "task"), True),
    "mokd_": ({KD, KL}, ("distill", "task"), True),
    "mokd_three_objectives": ({KD, KL}, ("kl", "kd", "cls"), True),
    "dto_kd_": ({KD, KL}, ("distill", "task"), True),
}
# published: DeiT's and RegNetY-160's millions of parameters
PARAMETERS = {
    ("tiny", False): 5_717_416,
    ("tiny", True): 5_910_800,
    ("small", False): 22_050_664,
    ("small", True): 22_436_432,
}
NAMES = [
    f"mokd_deit_{size}_three_objectives" if method == "mokd_three_objectives" else f"{method}deit_{size}"
    for size in ("tiny", "small")
    for method in METHODS
]


def parts(name: str) -> tuple[str, str]:
    """Size of the student and key of the method."""
    size = "tiny" if "tiny" in name else "small"
    return size, "mokd_three_objectives" if name.endswith("three_objectives") else name.split("deit_")[0]


def random_batches(side: int = 32, classes: int = 10) -> Iterator[ClassificationBatch]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 7])
    targets = torch.eye(classes)[labels] * 0.9 + 0.1 / classes
    while True:
        images = torch.randn(2, 3, side, side, generator=generator)
        yield ClassificationBatch(images, targets, labels, torch.arange(2), ["a.jpg", "b.jpg"])


def shrink(cfg: DictConfig, depth: bool = True) -> DictConfig:
    """Ten classes, images of 32 pixels and a small teacher of the same family."""
    distills = "teacher" in cfg.model
    student = cfg.model.student if distills else cfg.model
    student.num_classes = 10
    if "deit" in student.network.name:
        student.network.img_size = 32
        student.network.depth = 2
    if distills:
        cfg.model.teacher_checkpoint = ""
        cfg.model.teacher.num_classes = 10
        cfg.model.teacher.network.update({"name": "regnety_002", "download": False})
    cfg.dataloader.train = L(random_batches)()
    return cfg


def step(cfg: DictConfig) -> tuple[torch.nn.Module, dict[str, float]]:
    torch.manual_seed(0)
    trainer = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.model.train()
        trainer.run_step()
        return trainer.module, {name: value for name, (value, _) in storage.latest().items()}


def test_every_config_is_listed() -> None:
    assert {path.stem for path in IMAGENET.glob("*.py")} == {*NAMES, "timm_pair", "projector_deit_tiny"}


@pytest.mark.parametrize("name", NAMES)
def test_a_step(name: str) -> None:
    losses, objectives, _ = METHODS[parts(name)[1]]
    cfg = load_config(str(IMAGENET / f"{name}.py"))
    assert cfg.train.output_dir == f"output/{name}"
    assert cfg.train.max_iter == 300 * 1251 and cfg.optimizer.lr == 1e-3
    assert tuple(cfg.objectives) == objectives
    model, latest = step(shrink(cfg))
    assert {key for key in latest if key.startswith("loss_")} == {"loss_cls", *losses}
    assert isinstance(model, Distiller) is bool(losses)
    if name.startswith(("mokd", "dto_kd")):
        assert sum(latest[f"pi/{objective}"] for objective in objectives) == pytest.approx(1.0)
    elif losses:
        assert dict(cfg.balancer.get("weights", {})) == (
            {"distill": 0.5, "task": 0.5} if name.startswith(("hard", "soft")) else {}
        )
    # Undecayed are, besides the method's, what timm's own rule leaves out.
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_sizes_of_the_real_models(name: str) -> None:
    size, method = parts(name)
    cfg = load_config(str(IMAGENET / f"{name}.py"))
    node = cfg.model.student if "student" in cfg.model else cfg.model
    with torch.device("meta"):
        student = instantiate(node)
    has_token = METHODS[method][2]
    assert sum(p.numel() for p in student.parameters()) == PARAMETERS[size, has_token]
    assert ("dist_logits" in student.taps) is has_token
    assert student.taps["pooled"].spec.channels == ({"tiny": 192, "small": 384}[size],)


def test_the_teacher() -> None:
    cfg = load_config(str(IMAGENET / "mokd_deit_tiny.py"))
    assert cfg.model.teacher.network.name == "regnety_160.deit_in1k"
    with torch.device("meta"):
        teacher = instantiate(cfg.model.teacher)
    assert sum(p.numel() for p in teacher.parameters()) == 83_590_140
    assert teacher.taps["pooled"].spec.channels == (3024,)
    assert teacher.taps["maps"].spec.strides == (2, 4, 8, 16, 32)


def test_any_two_of_timms_models() -> None:
    cfg = load_config(
        str(IMAGENET / "timm_pair.py"),
        [
            "model.student.network.name=test_resnet",
            "model.student.network.drop_path_rate=0.0",
            "model.teacher.network.name=test_vit",
            "model.teacher.network.download=False",
            "model.student.num_classes=10",
            "model.teacher.num_classes=10",
        ],
    )
    cfg.model.teacher.network.img_size = 32
    cfg.dataloader.train = L(random_batches)()
    model, latest = step(cfg)
    assert {"loss_cls", KD, KL} <= set(latest)
    assert model.method.parts["kd"].heads["pooled"].n == -(-(96 + 64) // 64) * 64


def test_the_augmentation_is_vkds_and_deits_is_a_documented_switch() -> None:
    cfg = load_config(str(IMAGENET / "deit_tiny.py"))
    train, test = (instantiate(node.transform) for node in (cfg.dataloader.train, cfg.dataloader.test))
    kinds = [type(part).__name__ for part in train.transforms]
    assert kinds[0] == "RandomResizedCropAndInterpolation" and "ColorJitter" in kinds
    assert "RandAugment" not in kinds and "RandomErasing" not in kinds
    (jitter,) = (part for part in train.transforms if type(part).__name__ == "ColorJitter")
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.7, 1.3)
    assert cfg.dataloader.train.repeated_augmentation == 1
    assert [type(part).__name__ for part in test.transforms][:2] == ["Resize", "CenterCrop"]
    assert test.transforms[0].size == 256
    (switch,) = (cell for cell in documented_overrides() if "rand-m9" in cell)
    deit = load_config(str(IMAGENET / "vkd_deit_tiny.py"), shlex.split(switch)).dataloader.train
    kinds = [type(part).__name__ for part in instantiate(deit.transform).transforms]
    assert "RandAugment" in kinds and "RandomErasing" in kinds and deit.repeated_augmentation == 3


@pytest.mark.parametrize("projector", ["linear", "orthogonal", "mlp", "ensemble"])
def test_the_projectors_of_figure_6(projector: str) -> None:
    cfg = load_config(
        str(IMAGENET / "projector_deit_tiny.py"), [f"model.method.parts.kd.projector={projector}"]
    )
    model, latest = step(shrink(cfg))
    assert type(model.method.parts["kd"].projectors["pooled"]).__name__.lower() == f"{projector}projector"
    assert {"loss_cls", KD, KL} <= set(latest)


def test_a_config_is_a_few_lines() -> None:
    assert max(len(path.read_text().splitlines()) for path in IMAGENET.glob("*.py")) < 35


def documented_overrides() -> list[str]:
    """The overrides that docs/classification.md lists for mokd_deit_tiny.py, one string per entry."""
    page = (IMAGENET.parents[1] / "docs" / "classification.md").read_text(encoding="utf-8")
    cells = [
        cell for line in page.splitlines() if line.startswith("|") for cell in re.findall(r"`([^`]+)`", line)
    ]
    return [cell for cell in cells if re.match(r"'?(model|dataloader|train|optimizer|balancer)[.\w]*=", cell)]


def test_the_documented_overrides_are_accepted() -> None:
    overrides = documented_overrides()
    assert len(overrides) > 8 and "train.ema=null" in overrides
    for cell in overrides:
        cfg = load_config(str(IMAGENET / "mokd_deit_tiny.py"), shlex.split(cell))
        TrainSettings.from_config(cfg.train)


def test_the_documented_files_exist() -> None:
    page = (IMAGENET.parents[1] / "docs" / "classification.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w*deit_tiny\w*\.py)`", page, flags=re.MULTILINE)
    assert {Path(name).stem for name in listed} == {
        "projector_deit_tiny",
        *(name for name in NAMES if "tiny" in name),
    }
