from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoint.published import NANO, NANO_PLUS, official_content


@pytest.fixture(scope="session")
def vidt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published ViDT-nano."""
    path = tmp_path_factory.mktemp("published") / "vidt_nano.pth"
    torch.save(official_content(NANO), path)
    return path


@pytest.fixture(scope="session")
def vidt_plus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published ViDT+-nano, with the head for mask coefficients that the released ones have."""
    content = official_content(NANO_PLUS)
    content["model"]["vector_embed.layers.0.weight"] = torch.zeros(256, 256)
    path = tmp_path_factory.mktemp("published") / "vidt_plus_nano.pth"
    torch.save(content, path)
    return path
