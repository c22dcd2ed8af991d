"""Files are told apart by names and shapes."""

from __future__ import annotations

import pytest
import timm
import torch

from mokd_det.checkpoint import identify
from tests.checkpoint.published import NANO, NANO_PLUS, detector, shapes, swin_state


@pytest.mark.parametrize(
    ("variant", "kind", "text"),
    [
        (NANO, "vidt", "ViDT-nano (91 classes, 100 queries, 6 decoder layers)"),
        ("vidt_swin_tiny", "vidt", "ViDT-tiny (91 classes, 100 queries, 6 decoder layers)"),
        ("vidt_swin_small", "vidt", "ViDT-small (91 classes, 100 queries, 6 decoder layers)"),
        ("vidt_swin_base_win7_22k", "vidt", "ViDT-base (91 classes, 100 queries, 6 decoder layers)"),
        (NANO_PLUS, "vidt+", "ViDT+-nano (91 classes, 300 queries, 6 decoder layers)"),
    ],
)
def test_published_detectors(variant, kind, text):
    identity = identify({"model": shapes(variant), "epoch": 49})
    assert (identity.kind, str(identity), identity.layout) == (kind, text, "official")


def test_our_own_files():
    with torch.device("meta"):
        state = detector("small", num_classes=10, num_queries=30).state_dict()
    assert str(identify(state)) == "ViDT-small (10 classes, 30 queries, 6 decoder layers)"
    assert identify(state).kind == identify({"model": state}).kind == "student"
    assert identify({"model": state, "trainer": {}, "iteration": 9}).kind == "training"
    with torch.device("meta"):
        plus = detector(plus=True).state_dict()
    assert str(identify(plus)) == "ViDT+-nano (80 classes, 300 queries, 6 decoder layers)"
    assert identify(plus).kind == "student"


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ("swin_tiny_patch4_window7_224", {}, "the classifier Swin-tiny (1000 classes)"),
        ("swin_small_patch4_window7_224", {"num_classes": 0}, "the classifier Swin-small"),
        ("swin_base_patch4_window12_384", {}, "the classifier Swin-base (1000 classes, windows of 12)"),
        (
            "swin_large_patch4_window7_224",
            {"num_classes": 21841},
            "the classifier Swin-large (21841 classes)",
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 24, "depths": (1, 1, 2, 1)},
            "the classifier Swin of 24 channels with 1-1-2-1 blocks (1000 classes)",
        ),
    ],
)
def test_classifiers_in_both_layouts(model, options, text):
    with torch.device("meta"):
        network = timm.create_model(model, pretrained=False, **options)
    timm_kind, microsoft = (
        identify(swin_state(network, layout="timm")),
        identify(swin_state(network, layout="microsoft")),
    )
    assert (timm_kind.kind, str(timm_kind)) == ("timm swin", text)
    assert (microsoft.kind, str(microsoft)) == ("swin", text)


@pytest.mark.parametrize("model", ["swinv2_tiny_window8_256", "deit_tiny_patch16_224", "resnet18"])
def test_other_networks_are_unknown(model):
    with torch.device("meta"):
        state = timm.create_model(model, pretrained=False).state_dict()
    identity = identify(state)
    assert identity.kind == "unknown"
    assert str(identity) == f"no model known here (its first tensors: {', '.join(list(state)[:3])})"
