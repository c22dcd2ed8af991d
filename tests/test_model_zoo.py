"""The configs by name, as Detectron2's model zoo has them."""

from __future__ import annotations

import pytest

from mokd_det import model_zoo
from mokd_det.errors import ConfigError


def test_a_config_by_name() -> None:
    config = model_zoo.get_config("COCO/mokd_vidt_nano.py")
    assert {"student", "teacher", "method"} <= set(config.model)
    assert model_zoo.get_config_file("quickstart/mokd.py").endswith("configs/quickstart/mokd.py")
    with pytest.raises(ConfigError, match="there is no config 'COCO/nothing"):
        model_zoo.get_config("COCO/nothing.py")
