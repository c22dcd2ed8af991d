"""timm's models by name, and weights that do not fit."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mokd_det.checkpoint import write_file
from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.modeling import create_timm_model

NAME = "test_vit"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights as timm would publish them."""
    torch.manual_seed(1)
    network = timm.create_model(NAME, num_classes=7)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    write_file(network.state_dict(), path)
    return path, network


def test_without_weights_it_is_timms_model() -> None:
    torch.manual_seed(0)
    ours = create_timm_model(f"{NAME}.r160_in1k", num_classes=3, drop_path_rate=0.1)
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=3, drop_path_rate=0.1)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_weights_from_a_file(published) -> None:
    path, network = published
    ours = create_timm_model(NAME, weights=str(path), num_classes=7)
    assert all(map(torch.equal, ours.state_dict().values(), network.state_dict().values()))


def test_other_classes_need_a_word(published) -> None:
    path, network = published
    with pytest.raises(CheckpointError, match=r"their classes are not the model's 5.*new_classifier=True"):
        create_timm_model(NAME, weights=str(path), num_classes=5)
    ours = create_timm_model(NAME, weights=str(path), num_classes=5, new_classifier=True)
    assert ours.head.out_features == 5
    assert torch.equal(ours.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight)


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    write_file(nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"weights '.*other\.pth' do not fit test_vit"):
        create_timm_model(NAME, weights=str(tmp_path / "other.pth"))


def test_without_a_network_the_remedy_is_named(monkeypatch) -> None:
    created = timm.create_model

    def offline(name: str, pretrained: bool = False, **arguments: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("cannot find the requested files in the local cache\nmore\nand more")
        return created(name, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        CheckpointError, match=r"timm's weights of test_vit cannot be fetched .*weights=FILE"
    ) as caught:
        create_timm_model(NAME, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("deit_tiny_patch16_225",),
            ConfigError,
            "no model 'deit_tiny_patch16_225'; did you mean deit_tiny_patch16_224",
        ),
        ((NAME, "none.pth"), CheckpointError, r"weights of test_vit 'none\.pth' do not exist"),
        ((NAME, "none.pth", True), ConfigError, "contradict each other"),
    ],
)
def test_mistakes_are_named(arguments, error, message) -> None:
    name, *rest = arguments
    with pytest.raises(error, match=message):
        create_timm_model(name, **dict(zip(("weights", "download"), rest)))
    with pytest.raises(ConfigError, match=r"timm cannot build test_vit with \{'embed_dimm': 3\}"):
        create_timm_model(NAME, embed_dimm=3)
