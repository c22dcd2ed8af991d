"""The class token's attention and the rollout: recorded is timm's own softmax, and recording changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mokd_det.classification import ImageClassifier
from mokd_det.errors import ConfigError
from mokd_det.visualization.attention_classifier import attention_rollout, record_classifier_attention

SMALL = {"img_size": (48, 32), "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
VARIANTS = {
    "class token": ("vit_tiny_patch16_224", {}, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}, 4),
    "normalised queries": ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1}, 1),
}


def network(variant: str = "class token") -> nn.Module:
    name, options, _ = VARIANTS[variant]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.4)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_timms_own(variant, images):
    model, images = network(variant).double(), images.double()
    prefix = VARIANTS[variant][2]
    found = record_classifier_attention(model, lambda: model(images))
    assert (found.num_prefix, found.grid, len(found.blocks)) == (prefix, (3, 2), 3)
    # without the fused kernel timm passes the softmax through a dropout layer, where it can be seen
    own = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: own.append(output))
    with torch.no_grad():
        model(images)
    for weights, expected in zip(found.blocks, own, strict=True):
        assert weights.shape == (2, 3, prefix + 6, prefix + 6)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert found.blocks[0].std() > 0.01
    for block in (0, 2):
        expected = own[block].mean(1)[:, 0, prefix:].reshape(2, 3, 2)
        torch.testing.assert_close(found.class_token(block), expected, rtol=0, atol=1e-12)
    assert torch.equal(found.class_token(), found.class_token(2))


def test_half_precision_rows_sum_to_one(images):
    model = network().to(torch.bfloat16)
    found = record_classifier_attention(model, lambda: model(images.to(torch.bfloat16)))
    np.testing.assert_allclose(found.blocks[-1].double().sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recording_changes_nothing(variant, images):
    model = network(variant)
    with torch.no_grad():
        before = model(images)
    during = record_classifier_attention(model, lambda: model(images)).output
    with torch.no_grad():
        after = model(images)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inside_an_image_classifier(images):
    model = ImageClassifier(network(), num_classes=4).eval()
    found = record_classifier_attention(model.network, lambda: model(images))
    alone = record_classifier_attention(model.network, lambda: model.network(images))
    assert torch.equal(found.output, alone.output)
    assert all(torch.equal(a, b) for a, b in zip(found.blocks, alone.blocks, strict=True))


def test_rollout_by_hand():
    # two tokens, two blocks of two heads; the heads' means are A and B
    a_heads = torch.tensor([[[0.9, 0.1], [0.3, 0.7]], [[0.7, 0.3], [0.1, 0.9]]])
    b_heads = torch.tensor([[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [0.4, 0.6]]])
    # A = [[.8, .2], [.2, .8]],  (A + I)/2 = [[.9, .1], [.1, .9]]
    # B = [[.3, .7], [.5, .5]],  (B + I)/2 = [[.65, .35], [.25, .75]]
    # product, last block first: [[.585+.035, .065+.315], [.225+.075, .025+.675]]
    expected = torch.tensor([[[0.62, 0.38], [0.30, 0.70]]])
    found = attention_rollout([a_heads[None], b_heads[None]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention_rollout([a_heads[None]])[0, 0], torch.tensor([0.9, 0.1]))
    with pytest.raises(ValueError, match="at least one block"):
        attention_rollout([])


def test_rollout_of_a_network(images):
    model = network("distilled")
    found = record_classifier_attention(model, lambda: model(images))
    total = torch.eye(8).expand(2, 8, 8)
    for weights in found.blocks:
        total = (0.5 * weights.mean(1) + 0.5 * torch.eye(8)) @ total
    np.testing.assert_allclose(attention_rollout(found.blocks).sum(-1), 1.0, atol=1e-6)
    torch.testing.assert_close(found.rollout(), total[:, 0, 2:].reshape(2, 3, 2), rtol=0, atol=1e-6)
    # of the first block alone
    first = found.blocks[0].mean(1)[:, 0, 2:].reshape(2, 3, 2) / 2
    torch.testing.assert_close(found.rollout(1), first, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1)}),
        ("beit_base_patch16_224", {"embed_dim": 24, "depth": 1, "num_heads": 2}),
        (
            "vit_tiny_patch16_224",
            {"embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "avg"},
        ),
    ],
)
def test_networks_without_a_plain_class_token_are_refused(name, options):
    model = timm.create_model(name, num_classes=4, **options).eval()
    with pytest.raises(ConfigError, match=f"{type(model).__name__} has no class token with plain attention"):
        record_classifier_attention(model, lambda: None)


def test_a_head_that_does_not_read_the_class_token_is_refused(images):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, global_pool="avg", class_token=True).eval()
    with pytest.raises(ConfigError, match="global_pool='avg'"):
        record_classifier_attention(model, lambda: model(images))


def test_misuse_is_named(images):
    model = network()
    with pytest.raises(ValueError, match="called 2 times"):
        record_classifier_attention(model, lambda: (model(images), model(images)))
    with pytest.raises(ValueError, match="eval mode"):
        record_classifier_attention(network().train(), lambda: None)
    with pytest.raises(ConfigError, match="under a mask"):
        record_classifier_attention(
            model, lambda: model.blocks[0](torch.zeros(1, 7, 24), attn_mask=torch.zeros(7, 7))
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
