from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mokd_det.config import TrainSettings, load_config
from mokd_det.config.train_settings import CheckpointerSettings
from mokd_det.errors import ConfigError

CONFIG = Path(__file__).parents[1] / "engine" / "toy_config.py"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=7", "train.max_iter", 7),
        ("train.max_iter=1e3", "train.max_iter", 1000),
        ("train.output_dir=runs/a", "train.output_dir", "runs/a"),
        # Not Hydra's syntax: text as it stands.
        ("train.output_dir=Küche (2), a=b & [c]~", "train.output_dir", "Küche (2), a=b & [c]~"),
        ("train.output_dir=a,b", "train.output_dir", "a,b"),
        ("train.init_checkpoint=timm.pth#state_dict_ema", "train.init_checkpoint", "timm.pth#state_dict_ema"),
        ("train.amp={enabled: true}", "train.amp", {"enabled": True, "dtype": "bfloat16"}),
        ("train.clip_grad=null", "train.clip_grad", None),
        ("train.clip_grad.max_norm=2", "train.clip_grad.max_norm", 2),
        ("train.best={metric: bbox/AP50}", "train.best", {"metric": "bbox/AP50", "mode": "max"}),
        ("train.best.mode=min", "train.best", {"metric": "bbox/AP", "mode": "min"}),
        ("train.checkpointer.max_to_keep=null", "train.checkpointer.max_to_keep", None),
        ("train.ddp.static_graph=true", "train.ddp.static_graph", True),
        ("train.init_allow_missing=[class_embed.*]", "train.init_allow_missing", ["class_embed.*"]),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("optimizer.lr=1", "optimizer.lr", 1),
        # Arguments the callables have though the file does not give them.
        ("optimizer.eps=1e-6", "optimizer.eps", 1e-6),
        ("optimizer.params.backbone_lr=1e-5", "optimizer.params.backbone_lr", 1e-5),
        ("balancer.update_every=2", "balancer.update_every", 2),
        ("dataloader.train.poison={3: {loss_ce: 2.0}}", "dataloader.train.poison", {3: {"loss_ce": 2.0}}),
        ("optimizer._target_=torch.optim.Adam", "optimizer._target_", "torch.optim.Adam"),
        # Objectives are the user's to name.
        ("objectives.extra=[loss_extra]", "objectives.extra", ["loss_extra"]),
        ("objectives.box=null", "objectives.box", None),
        ("objectives={all: ['loss_*']}", "objectives", {"all": ["loss_*"]}),
        ("lr_multiplier.scheduler.end_value=0.5", "lr_multiplier.scheduler.end_value", 0.5),
    ],
)
def test_overrides_that_apply(override, key, value):
    cfg = load_config(CONFIG, [override])
    found = OmegaConf.select(cfg, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itre=7", "unknown config key 'train.max_itre'; did you mean 'train.max_iter'?"),
        ("optimzer.lr=1", "unknown config key 'optimzer'; did you mean 'optimizer'?"),
        ("max_iter=7", "unknown config key 'max_iter'; did you mean 'train.max_iter'?"),
        ("optimizer.learning_rate=1", "unknown config key 'optimizer.learning_rate'; known here: "),
        ("optimizer.weigth_decay=1", "did you mean 'optimizer.weight_decay'?"),
        ("train.amp.enbled=true", "did you mean 'train.amp.enabled'?"),
        ("train.amp={enbled: true}", "did you mean 'train.amp.enabled'?"),
        ("train.best={metrik: a}", "did you mean 'train.best.metric'?"),
        ("train.ddp.statik_graph=true", "unknown config key 'train.ddp.statik_graph'"),
        ("model={widht: 3}", "did you mean 'model.width'?"),
        ("model.width.x=3", "model.width is 8 (int) and has no keys"),
        ("model.blocks.x=3", "unknown config key 'model.blocks'"),
        ("lr_multiplier.scheduler.end_valu=0.5", "did you mean 'lr_multiplier.scheduler.end_value'?"),
        ("train.max_iter=abc", "train.max_iter is 12 (int), not of type str"),
        ("train.max_iter=1.5", "train.max_iter is 12 (int), not of type float"),
        ("train.max_iter=true", "train.max_iter is 12 (int), not of type bool"),
        ("train.max_iter=null", "train.max_iter is 12 (int) and cannot be null"),
        ("train.amp.enabled=1", "train.amp.enabled is False (bool), not of type int"),
        (
            "train.output_dir=3",
            "train.output_dir is './output' (str), not of type int; to give a string write",
        ),
        ("optimizer.lr=fast", "optimizer.lr is 0.01 (float), not of type str"),
        ("optimizer.eps=small", "optimizer.eps is 1e-08 (float), not of type str"),
        ("train=3", "train is a mapping, not of type int"),
        ("objectives.cls.0.x=1", "objectives.cls.0 is 'loss_ce' (str) and has no keys"),
        ("objectives.cls.5=a", "the list has the entries 0 to 0"),
        (
            "optimizer._target_=torch.optim.Nothing",
            "optimizer._target_ is 'torch.optim.Nothing', which cannot be",
        ),
        ("train.max_iter", "is not of the form key.path=value"),
        ("+train.max_iter=3", "only key.path=value is supported"),
        ("~train.max_iter", "only key.path=value is supported"),
        ("train.max_iter=1,2", "only key.path=value is supported"),
        ("balancer.update_every=1,2", "only key.path=value is supported"),
        ("train.max_iter=~3", "is not of the form key.path=value"),
        ("train.output_dir='a", "is not of the form key.path=value"),
        ("train.init_keep_rows=90", "train.init_keep_rows is 'coco80' (str), not of type int"),
        ("train.init_keep_rows=coco", "train.init_keep_rows is 'coco'; it must be 'coco80' or 'all'"),
        ("train.seed=-1", "train.seed is -1; it must be 0 or more"),
        ("train.device=gpu", "train.device is 'gpu'; it must be 'auto', 'cuda' or 'cpu'"),
        ("train.clip_grad.max_norm=0", "train.clip_grad.max_norm is 0.0; it must be above 0"),
        ("train.checkpointer.period=0", "train.checkpointer.period is 0; it must be 1 or more"),
        ("train.amp.dtype=int8", "train.amp.dtype is 'int8'; it must be 'float16' or 'bfloat16'"),
    ],
)
def test_overrides_that_are_rejected(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(CONFIG, [override])


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/of/somebody")
    assert load_config(CONFIG, ["train.output_dir=~/runs"]).train.output_dir == "/of/somebody/runs"
    in_a_file = TrainSettings.from_config({"max_iter": 1, "output_dir": "~/runs"})
    assert in_a_file.output_dir == "/of/somebody/runs"


def test_one_line_chooses_another_balancer():
    cfg = load_config(
        CONFIG, ["balancer.lr=0.1", "balancer={_target_: mokd_det.balancing.ClosedForm, eps: 1e-6}"]
    )
    assert cfg.balancer == {"_target_": "mokd_det.balancing.ClosedForm", "eps": 1e-6}
    with pytest.raises(
        ConfigError, match=r"balancer\._target_ is 'mokd_det\.balancing\.ClosedFrom', which cannot be"
    ):
        load_config(CONFIG, ["balancer={_target_: mokd_det.balancing.ClosedFrom}"])
    with pytest.raises(
        ConfigError, match=r"unknown config key 'balancer\.pi': .*ClosedForm has no such argument"
    ):
        load_config(CONFIG, ["balancer={_target_: mokd_det.balancing.ClosedForm, pi: 1}"])


def test_a_new_target_must_accept_the_arguments_that_are_there():
    load_config(CONFIG, ["optimizer.betas=[0.9,0.98]", "optimizer._target_=torch.optim.Adam"])
    with pytest.raises(
        ConfigError, match=r"unknown config key 'optimizer\.betas': torch\.optim\.SGD has no such"
    ):
        load_config(CONFIG, ["optimizer.betas=[0.9,0.98]", "optimizer._target_=torch.optim.SGD"])


def write(tmp_path: Path, text: str, replace: tuple[str, str] = ("", "")) -> Path:
    path = tmp_path / "config.py"
    path.write_text(CONFIG.read_text().replace(*replace) + text if replace[0] else text)
    return path


def test_files_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.py' does not exist"):
        load_config(tmp_path / "none.py")
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(ConfigError, match=r"config\.txt' must be a \.py or \.yaml file"):
        load_config(tmp_path / "config.txt")
    with pytest.raises(ConfigError, match=r"config\.py' fails with SyntaxError: .*line 1"):
        load_config(write(tmp_path, "train = dict(\n"))
    with pytest.raises(
        ConfigError, match=r"config\.py' fails with NameError: name 'undefined' is not defined"
    ):
        load_config(write(tmp_path, "train = undefined\n"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimizer = ", "optimiser = ", r"does not define 'optimizer'; did you mean 'optimiser'\?"),
        (
            "log_period=2",
            "log_perod=2",
            r"unknown config key 'train\.log_perod'; did you mean 'train\.log_period'\?",
        ),
        ("max_iter=12,", "", r"train\.max_iter is missing"),
        (
            "width=8",
            "widht=8",
            r"unknown config key 'model\.widht': ToyDetector has no such argument; did you mean 'model\.w",
        ),
        ("total_batch_size=4", "batch_size=4", r"unknown config key 'dataloader\.train\.batch_size'"),
        ("start_value=1.0", "start=1.0", r"unknown config key 'lr_multiplier\.scheduler\.start'"),
        (
            "clip_grad=dict(max_norm=1.0",
            "clip_grad=dict(maxnorm=1.0",
            r"did you mean 'train\.clip_grad\.max_norm'\?",
        ),
        ('device="cpu"', "device=3", r"train\.device is '3'; it must be 'auto', 'cuda' or 'cpu'"),
        ('device="cpu"', "seed=1.5", r"train\.seed is 1\.5; it must be of type int"),
        ('device="cpu"', "seed=True", r"train\.seed is True; it must be of type int"),
        ('device="cpu"', "amp=True", r"train\.amp is True; it must be a mapping"),
        ('device="cpu"', "amp=None", r"train\.amp is None; it must be a mapping"),
        ('device="cpu"', "ema=0.9", r"train\.ema is 0\.9; it must be a mapping or null"),
        ('device="cpu"', "ema=dict(decay=None)", r"train\.ema\.decay is None; it must be of type float"),
        (
            'device="cpu"',
            "init_allow_missing='a.*'",
            r"train\.init_allow_missing is 'a\.\*'; it must be a list of pat",
        ),
        (
            'device="cpu"',
            "conflict_groups=dict(a='b')",
            r"train\.conflict_groups\.a is 'b'; it must be a list of pattern",
        ),
    ],
)
def test_mistakes_in_a_file_are_named(old, new, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "", (old, new)))


def test_config_errors_leave_imports_as_they_were(tmp_path):
    import builtins

    original = builtins.__import__
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, "train = undefined\n"))
    assert builtins.__import__ is original


def test_a_file_may_define_parts_of_its_own(tmp_path):
    cfg = load_config(
        write(
            tmp_path, "\nbase = dict(width=3)\nmodel.width = base['width']\n", ("max_iter=12", "max_iter=9")
        )
    )
    assert cfg.model.width == 3
    assert cfg.train.max_iter == 9


def test_defaults_fill_every_section_partly_given():
    cfg = load_config(CONFIG)
    assert cfg.train.checkpointer.period == 3
    assert cfg.train.checkpointer.max_to_keep == CheckpointerSettings().max_to_keep
    assert set(cfg.train) == {item.name for item in dataclasses.fields(TrainSettings)}
    settings = TrainSettings.from_config(cfg.train)
    assert settings.clip_grad.max_norm == 1.0
    assert settings.best is None


def test_the_saved_configuration_can_be_run_again(tmp_path):
    from detectron2.config import LazyConfig

    cfg = load_config(CONFIG, ["train.max_iter=5"])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(tmp_path / "config.yaml", ["train.seed=3"])
    assert again.train.max_iter == 5
    assert again.train.seed == 3
    shutil.rmtree(tmp_path)
