"""The attention of DET tokens: what is recorded is what the layers compute, and recording changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from mokd_det.errors import ConfigError
from mokd_det.layers import KERNELS, attend_det_tokens, det_attention_weights
from mokd_det.modeling import EPFF, InputProjection, TorchvisionDetector
from mokd_det.modeling.backbone.base import DetBackbone, DetFeatures
from mokd_det.visualization.attention_detector import record_detector_attention

SIZES = ((160, 96), (90, 231))
CANVAS = (160, 231)


def padded_cells(index: int) -> np.ndarray:
    """Of the last stage's 5 x 8 cells: those that ViDT's two roundings of the mask call padding."""
    height, width = SIZES[index]
    rows, columns = CANVAS[0] // 32, (-(-CANVAS[1] // 4)) // 8
    coarse = [
        [r * CANVAS[0] // rows >= height or c * CANVAS[1] // columns >= width for c in range(columns)]
        for r in range(rows)
    ]
    fine_rows, fine_columns = -(-CANVAS[0] // 32), -(-CANVAS[1] // 32)
    return np.array(
        [
            [coarse[r * rows // fine_rows][c * columns // fine_columns] for c in range(fine_columns)]
            for r in range(fine_rows)
        ]
    )


@pytest.mark.parametrize("masked", [False, True])
def test_the_weights_are_those_of_the_attention(masked):
    torch.manual_seed(0)
    qkv = nn.Linear(12, 36).double()
    det, patches = torch.randn(2, 5, 12).double(), torch.randn(2, 3, 4, 12).double()
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, 2:] = mask[1, :, 3:] = True
    mask = mask if masked else None
    weights = det_attention_weights(qkv, 3, det, patches, mask)
    assert weights.shape == (2, 3, 5, 3 * 4 + 5)
    values = torch.cat((patches.flatten(1, 2), det), 1)
    value = qkv(values).unflatten(-1, (3, 3, -1))[:, :, 2].transpose(1, 2)
    rebuilt = (weights @ value).transpose(1, 2).flatten(2)
    expected = attend_det_tokens(qkv, 3, det, patches, mask)
    torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-12)
    # and they are no constant
    assert weights.std() > 0.01


def test_rows_sum_to_one_and_padding_gets_exactly_nothing(vidt, unequal_batch):
    found = record_detector_attention(vidt(), unequal_batch)
    assert len(found) == 2
    for index, attention in enumerate(found):
        assert len(attention.cross) == 2  # the last stage's blocks
        for cross in attention.cross:
            assert cross.weights.shape == (4, 6, 5 * 8 + 6)
            np.testing.assert_allclose(cross.weights.sum(-1), 1.0, atol=1e-6)
            cells = cross.weights[..., :40].reshape(4, 6, 5, 8)
            outside = padded_cells(index)
            assert 0 < outside.sum() < 40
            assert (cells[:, :, outside] == 0.0).all()
            assert (cells[:, :, ~outside] > 0.0).all()
            np.testing.assert_allclose(
                cross.on_image() + cross.weights[..., 40:].sum(-1).mean(0), 1.0, atol=1e-6
            )


def test_a_map_lies_on_its_original_image(vidt, unequal_batch):
    first, second = record_detector_attention(vidt(), unequal_batch)
    assert first.cross[-1].grid == second.cross[-1].grid == (5, 8)
    assert first.cross[-1].cell == (32.0, 32.0)
    np.testing.assert_allclose(second.cross[-1].cell, (32 * 77 / 231, 32 * 30 / 90))


@pytest.mark.parametrize(("neck", "strides"), [(InputProjection, (8, 16, 32, 64)), (EPFF, (64, 32, 16, 8))])
def test_sampling_points_are_those_that_the_layers_read(vidt, unequal_batch, monkeypatch, neck, strides):
    used = []
    kernel = KERNELS["fused"]

    def spy(value, shapes, locations, weights):
        used.append((shapes, locations.clone(), weights.clone()))
        return kernel(value, shapes, locations, weights)

    monkeypatch.setitem(KERNELS, "fused", spy)
    model = vidt(neck=neck)
    # fresh layers read the same points with equal weights everywhere
    for layer in model.transformer.decoder.layers:
        layer.cross_attn.kernel = "fused"
        nn.init.normal_(layer.cross_attn.sampling_offsets.weight, std=0.1)
        nn.init.normal_(layer.cross_attn.attention_weights.weight, std=0.3)
    found = record_detector_attention(model, unequal_batch)
    assert len(used) == 2
    for image, (attention, original) in enumerate(zip(found, ((160, 96), (30, 77)), strict=True)):
        scale = np.array([original[1] / SIZES[image][1], original[0] / SIZES[image][0]])
        for sampling, (shapes, locations, weights) in zip(attention.sampling, used, strict=True):
            assert sampling.strides == strides
            np.testing.assert_array_equal(sampling.weights, weights[image].numpy())
            np.testing.assert_allclose(sampling.weights.sum((-1, -2)), 1.0, atol=1e-6)
            for level, ((height, width), stride) in enumerate(zip(shapes, sampling.strides, strict=True)):
                cells = sampling.points[:, :, level] / scale / stride
                expected = locations[image, :, :, level].numpy() * [width, height]
                np.testing.assert_allclose(cells, expected, rtol=0, atol=1e-4)
        assert sampling.weights.std() > 0.001


def test_predictions_are_the_models(vidt, unequal_batch):
    model = vidt()
    for head in model.class_embed:
        nn.init.normal_(head.weight)
    found = record_detector_attention(model, unequal_batch)
    with torch.no_grad():
        outputs = model(unequal_batch)
    for attention, output in zip(found, outputs, strict=True):
        best = int(attention.scores.argmax())
        instances = output["instances"]
        assert float(instances.scores[0]) == pytest.approx(attention.scores[best], abs=1e-6)
        assert int(instances.pred_classes[0]) == attention.classes[best]
        np.testing.assert_allclose(
            instances.pred_boxes.tensor[0].numpy(), attention.boxes[best], rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("which", ["swin", "timm"])
def test_recording_changes_nothing(vidt, timm_vidt, unequal_batch, which):
    model = vidt() if which == "swin" else timm_vidt
    during = []

    def outputs():
        with torch.no_grad():
            return [(o["instances"].pred_boxes.tensor, o["instances"].scores) for o in model(unequal_batch)]

    before = outputs()
    handle = model.register_forward_hook(lambda module, args, output: during.append(output))
    record_detector_attention(model, unequal_batch)
    handle.remove()
    after = outputs()
    for first, middle, last in zip(before, during[0], after, strict=True):
        instances = middle["instances"]
        for a, b, c in zip(first, (instances.pred_boxes.tensor, instances.scores), last, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)
    assert no_hooks(model)


def test_an_error_inside_leaves_no_hooks(vidt, unequal_batch):
    model = vidt()
    unequal_batch[1]["image"] = torch.zeros(5, 4, 4)
    with pytest.raises(RuntimeError):
        record_detector_attention(model, unequal_batch)
    assert no_hooks(model)


def no_hooks(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_timm_backbone_shows_its_last_stage(timm_vidt, unequal_batch):
    block = timm_vidt.backbone.stages[2].blocks[1]
    inputs, before_projection = [], []
    handles = [
        block.register_forward_pre_hook(lambda module, args: inputs.append(args)),
        block.proj.register_forward_pre_hook(lambda module, args: before_projection.append(args[0])),
    ]
    found = record_detector_attention(timm_vidt, unequal_batch)
    for handle in handles:
        handle.remove()
    assert [cross.grid for cross in found[0].cross] == [(5, 8), (5, 8)]
    assert [cross.cell for cross in found[0].cross] == [(32.0, 32.0)] * 2
    weights = torch.stack([torch.from_numpy(attention.cross[-1].weights) for attention in found])
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    # with them the block's own average is rebuilt
    det, det_pos, patches, _ = inputs[0]
    with torch.no_grad():
        tokens = torch.cat((patches.flatten(1, 2), block.norm1(det) + block.det_pos_linear(det_pos)), 1)
        value = block.qkv(tokens).unflatten(-1, (3, block.num_heads, -1))[:, :, 2].transpose(1, 2)
    rebuilt = (weights.float() @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(rebuilt, before_projection[0], rtol=0, atol=1e-5)
    outside = found[0].cross[-1].maps()[0] == 0.0
    # 96 of 231 columns: three cells of 28.9 pixels and part of a fourth
    assert outside[:, 4:].all() and not outside[:, :4].any()


class Stripes(DetBackbone):
    """A backbone of a user's own, with an attention that nobody knows."""

    strides, channels = (8, 16, 32, 64), (32, 32, 32, 32)
    num_det_tokens, det_channels, pos_channels = 6, 32, 32

    def forward(self, images, padding_mask):
        maps = [
            images.new_zeros(len(images), 32, -(-images.shape[2] // s), -(-images.shape[3] // s))
            for s in self.strides
        ]
        return DetFeatures(maps, images.new_zeros(len(images), 6, 32), images.new_zeros(1, 6, 32))


def test_models_without_such_attention_are_refused(vidt, unequal_batch):
    ssd = TorchvisionDetector(
        ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    )
    with pytest.raises(ConfigError, match="TorchvisionDetector has no DET tokens"):
        record_detector_attention(ssd.eval(), unequal_batch)
    with pytest.raises(ConfigError, match="the backbone Stripes cannot be drawn"):
        record_detector_attention(vidt(Stripes()), unequal_batch)
    with pytest.raises(ValueError, match="eval mode"):
        record_detector_attention(vidt().train(), unequal_batch)
