"""The configs by name, as Detectron2's model zoo has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mokd_det import model_zoo
from mokd_det.config import load_config
from mokd_det.errors import ConfigError


def test_a_config_by_name() -> None:
    config = model_zoo.get_config("COCO/mokd_vidt_nano.py")
    assert {"student", "teacher", "method"} <= set(config.model)
    # What it defines, before --config-file would ask whose data.
    assert "data" in model_zoo.get_config("custom/vidt_nano.py")
    with pytest.raises(ConfigError, match="are not given"):
        load_config("custom/vidt_nano.py")
    assert model_zoo.get_config_file("quickstart/mokd.py").endswith("configs/quickstart/mokd.py")
    with pytest.raises(
        ConfigError, match=r"there is no config 'COCO/vidt_nana.py' .* mean 'COCO/vidt_nano\.py'"
    ):
        model_zoo.get_config("COCO/vidt_nana.py")


def test_the_users_own_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = model_zoo.get_config_file("COCO/vidt_nano.py")
    assert model_zoo.find_config_file("COCO/vidt_nano.py") == packaged
    assert model_zoo.find_config_file("configs/COCO/vidt_nano.py") == packaged
    own = tmp_path / "COCO" / "vidt_nano.py"
    own.parent.mkdir()
    own.touch()
    assert model_zoo.find_config_file("COCO/vidt_nano.py") == "COCO/vidt_nano.py"
    with pytest.raises(ConfigError, match=r"methods file '\.\./configs/common/methods\.py' does not exist"):
        model_zoo.find_config_file("../configs/common/methods.py", "methods file")


def test_a_config_of_ones_own_builds_on_one_of_these(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from mokd_det.model_zoo import get_config\n"
        "base = get_config('COCO/vidt_nano.py')\n"
        "model, dataloader, train, objectives = base.model, base.dataloader, base.train, base.objectives\n"
        "optimizer, lr_multiplier, balancer = base.optimizer, base.lr_multiplier, base.balancer\n"
        "train.max_iter = 7\n"
    )
    config = load_config(own)
    assert config.train.max_iter == 7 and config.model == load_config("COCO/vidt_nano.py").model
