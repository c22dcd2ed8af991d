"""Swin classifiers, in Microsoft's and timm's layout, give our backbone timm's features on patch tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor, nn

from mokd_det.checkpoint import load_into, load_state
from mokd_det.errors import CheckpointError
from mokd_det.modeling.backbone import DET_BACKBONES, SwinRAM, swin_tiny
from tests.checkpoint.published import detector, swin_state

TIMM_TINY = "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def timm_tiny() -> nn.Module:
    """timm's Swin-tiny with random weights; every map is cut into full, shifted windows, as ViDT does."""
    torch.manual_seed(0)
    model = timm.create_model(TIMM_TINY, pretrained=False, always_partition=True).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # timm starts with zero biases and unit norms, which hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def timm_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Output of the blocks of stages 2 to 4, before the next stage merges patches, (B, C, H, W)."""
    with torch.no_grad():
        _, features = model.forward_intermediates(images, indices=[1, 2, 3])
    return features


def our_features(model: SwinRAM, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return model(images, torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)).patch_features[
            :3
        ]


def assert_equal_features(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs) == 3
    for found, wanted in zip(ours, theirs):
        assert found.shape == wanted.shape
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_both_layouts_give_timms_features(timm_tiny, tmp_path):
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = timm_features(timm_tiny.double(), images)
    timm_tiny.float()
    states = []
    for layout in ("timm", "microsoft"):
        state = swin_state(timm_tiny, layout=layout)
        torch.save({"model": state} if layout == "microsoft" else state, tmp_path / "swin.pth")
        torch.manual_seed(2)
        backbone = swin_tiny().eval()
        report = load_into(backbone, tmp_path / "swin.pth")
        assert_equal_features(our_features(backbone.double(), images), theirs)
        states.append(backbone.state_dict())
        assert {"norm.weight", "norm.bias"} <= set(report.skipped)
        assert {"det_token", "det_pos_embed", "layers.3.downsample.reduction.weight"} <= set(report.kept)
        loaded = {key for key in report.loaded if "relative_position_index" not in key}
        assert len(loaded) == sum(not key.startswith(("norm.", "head.")) for key in timm_tiny.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_maps_that_need_window_padding():
    """Unshifted blocks: timm pads shifted windows after the roll, Microsoft's detector and ViDT before it."""
    torch.manual_seed(0)
    network = timm.create_model(
        TIMM_TINY, pretrained=False, img_size=(232, 200), depths=(1, 1, 1, 1), always_partition=True
    ).eval()
    backbone = DET_BACKBONES.get("swin_tiny")(depths=(1, 1, 1, 1)).eval()
    load_state(backbone, network.state_dict(), "checkpoint 'x.pth'")
    images = torch.randn(2, 3, 232, 200, dtype=torch.float64)
    theirs = timm_features(network.double(), images)
    assert [feature.shape[-2:] for feature in theirs] == [(29, 25), (15, 13), (8, 7)]
    assert_equal_features(our_features(backbone.double(), images), theirs)


def test_a_detector_takes_its_backbone_and_keeps_the_rest(timm_tiny, tmp_path):
    torch.save({"model": swin_state(timm_tiny, layout="microsoft")}, tmp_path / "swin.pth")
    model = detector("tiny", num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_into(model, tmp_path / "swin.pth")
    after = model.state_dict()
    state = swin_state(timm_tiny, layout="microsoft")
    assert torch.equal(
        after["backbone.layers.1.downsample.norm.weight"], state["layers.1.downsample.norm.weight"]
    )
    assert all(key.startswith("backbone.") for key in report.loaded)
    for key in after:
        if key in report.loaded:
            assert torch.equal(after[key], state[key.removeprefix("backbone.")])
        else:
            assert key in report.kept and torch.equal(after[key], before[key])
    assert {"head.weight", "layers.2.blocks.1.attn_mask"} <= set(report.skipped)
    assert "re-initialised" not in str(report)
    assert "backbone.layers.*.blocks.*.det_pos_linear.weight" in str(report)


@pytest.mark.parametrize(
    ("classifier", "variant", "message"),
    [
        (TIMM_TINY, "nano", "the classifier Swin-tiny .*; the model is ViDT-nano"),
        (
            TIMM_TINY,
            "small",
            "the classifier Swin-tiny .*; the model is ViDT-small .*blocks.6.*missing|missing.*blocks.6",
        ),
        (
            "swin_small_patch4_window7_224",
            "tiny",
            "the classifier Swin-small .*; the model is ViDT-tiny .*unknown",
        ),
        (
            "swin_base_patch4_window12_384",
            "base",
            r"Swin-base \(1000 classes, windows of 12\); .*\[529, 4\] instead of",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["timm", "microsoft"])
def test_another_variant_is_named(classifier, variant, message, layout):
    with torch.device("meta"):
        state = swin_state(timm.create_model(classifier, pretrained=False), layout=layout)
        model = detector(variant)
    with pytest.raises(CheckpointError, match=f"this file looks like .*{message}"):
        load_state(model, state, "checkpoint 'x.pth'")


def test_a_classifier_is_refused_where_a_detector_is_needed():
    with torch.device("meta"):
        state = timm.create_model(TIMM_TINY, pretrained=False).state_dict()
        model = detector("tiny")
    with pytest.raises(
        CheckpointError,
        match=r"'x.pth' is the classifier Swin-tiny .* fills a backbone only; the model is ViDT-tiny",
    ):
        load_state(model, state, "checkpoint 'x.pth'", allow_classifier=False)


def test_a_classifier_that_lacks_a_tensor_is_an_error():
    with torch.device("meta"):
        state = swin_state(timm.create_model(TIMM_TINY, pretrained=False), layout="microsoft")
        model = detector("tiny")
    del state["layers.2.downsample.reduction.weight"]
    with pytest.raises(
        CheckpointError,
        match=r"1 missing from the file \(backbone\.layers\.2\.downsample\.reduction\.weight\)",
    ):
        load_state(model, state, "checkpoint 'x.pth'")


def test_a_classifier_is_no_detector_with_another_stem():
    with torch.device("meta"):
        state = swin_state(timm.create_model(TIMM_TINY, pretrained=False), layout="timm")
        model = DET_BACKBONES.get("swin_tiny")(stem="conv")
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj"):
        load_state(model, state, "checkpoint 'x.pth'")
