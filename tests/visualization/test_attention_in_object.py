"""A detector and a classifier whose weights make them look at the bright square: the pictures' peaks lie in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch

from mokd_det.visualization.attention_classifier import record_classifier_attention
from mokd_det.visualization.attention_detector import record_detector_attention
from mokd_det.visualization.attention_drawing import enlarge_map
from mokd_det.visualization.attention_figure import ClassMaps, class_attention_figure, object_attention_figure

HEIGHT, WIDTH = 128, 192
GAIN = 10.0


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def scene(x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    """Black, with a white box."""
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[:, y0:y1, x0:x1] = 255.0
    return image


@torch.no_grad()
def look_at_bright_cells(model, box: tuple[int, int, int, int]) -> None:
    """Let channel 0 carry the brightness to the last stage, whose keys are that channel and whose queries are constant;
    let every token predict class 2 at ``box``."""
    stem = model.backbone.patch_embed.proj
    for weight in (stem.weight, stem.bias, model.backbone.det_token):
        weight.zero_()
    stem.weight[0], stem.weight[1] = 1 / 48, -1 / 48
    for stage in model.backbone.layers:
        for block in stage.blocks:
            for layer in (block.attn.proj, block.mlp.fc2, block.det_pos_linear):
                layer.weight.zero_()
                layer.bias.zero_()
        merging = stage.downsample.reduction.weight.zero_()
        channels = merging.shape[1] // 4
        for corner in range(4):
            merging[0, corner * channels] = merging[1, corner * channels + 1] = 0.25
    for block in model.backbone.layers[3].blocks:
        qkv, dim = block.attn.qkv, block.attn.qkv.in_features
        qkv.weight.zero_()
        qkv.bias.zero_()
        for head in range(0, dim, dim // block.attn.num_heads):
            qkv.bias[head] = GAIN
            qkv.weight[dim + head, 0] = 1.0
    x0, y0, x1, y1 = box
    model.transformer.reference_points.weight.zero_()
    model.transformer.reference_points.bias.copy_(
        torch.tensor([logit((x0 + x1) / 2 / WIDTH), logit((y0 + y1) / 2 / HEIGHT)])
    )
    size = torch.tensor([0.0, 0.0, logit((x1 - x0) / WIDTH), logit((y1 - y0) / HEIGHT)])
    for level, head in enumerate(model.bbox_embed):
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.copy_(size if level == 0 else torch.zeros(4))
    model.class_embed[-1].bias.copy_(torch.tensor([-9.0, -9.0, 3.0, -9.0, -9.0]))


def in_box(x: float, y: float, box: np.ndarray, slack: float = 0.0) -> bool:
    return box[0] - slack <= x <= box[2] + slack and box[1] - slack <= y <= box[3] + slack


@pytest.mark.parametrize("box", [(64, 64, 128, 128), (0, 0, 32, 32), (160, 96, 192, 128), (96, 0, 192, 64)])
def test_the_detectors_peak_lies_in_the_object(vidt, box):
    model = vidt()
    look_at_bright_cells(model, box)
    # The other image makes padding of the first one's right and bottom; its original was twice as large.
    batch = [
        {"image": scene(*box), "height": 2 * HEIGHT, "width": 2 * WIDTH},
        {"image": torch.full((3, 256, 256), 255.0), "height": 256, "width": 256},
    ]
    attention = record_detector_attention(model, batch)[0]
    target = 2.0 * np.array(box)
    np.testing.assert_allclose(attention.boxes, np.tile(target, (6, 1)), atol=1e-2)
    assert (attention.classes == 2).all() and (attention.scores > 0.9).all()
    for cross in attention.cross:
        assert (cross.on_image() > 0.99).all()
        for smooth in (True, False):
            heat = enlarge_map(cross.maps()[0], cross.cell, (2 * HEIGHT, 2 * WIDTH), smooth)
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            assert in_box(x + 0.5, y + 0.5, target)
    # the points of fresh sampling layers spread over the reference box, here the object's
    for sampling in attention.sampling:
        points = sampling.points.reshape(-1, 2)
        assert all(in_box(x, y, target, slack=0.1) for x, y in points)
        assert points.std(0).min() > 5


def peak_in_picture(axes) -> tuple[float, float]:
    """The brightest place of what is drawn on the axes, in data coordinates."""
    picture = axes.images[0].get_array().astype(np.float64).sum(-1)
    left, right, bottom, top = axes.images[0].get_extent()
    y, x = np.argwhere(picture == picture.max()).mean(0) + 0.5
    return left + x / picture.shape[1] * (right - left), top + y / picture.shape[0] * (bottom - top)


def test_the_peak_of_the_drawn_picture_lies_in_the_object(vidt):
    box = (32, 64, 64, 96)
    model = vidt()
    look_at_bright_cells(model, box)
    attention = record_detector_attention(model, [{"image": scene(*box)}])[0]
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)  # so that nothing but the attention makes light
    figure = object_attention_figure(
        grey, [("detector", attention)], list("abcde"), threshold=0.5, max_objects=1
    )
    assert in_box(*peak_in_picture(figure.axes[1]), np.array(box))
    dots = np.concatenate([dot.get_offsets() for dot in figure.axes[2].collections])
    assert len(dots) == 4 * 4 * 4 and all(in_box(x, y, np.array(box), slack=0.1) for x, y in dots)


@torch.no_grad()
def classifier_of_bright_patches() -> torch.nn.Module:
    """A ViT of two blocks whose class token asks for brightness."""
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=(HEIGHT, WIDTH), depth=2, embed_dim=16, num_heads=2, num_classes=3
    ).eval()
    for weight in (
        network.patch_embed.proj.weight,
        network.patch_embed.proj.bias,
        network.pos_embed,
        network.cls_token,
    ):
        weight.zero_()
    network.patch_embed.proj.weight[0], network.patch_embed.proj.weight[1] = 1 / 768, -1 / 768
    for block in network.blocks:
        for layer in (block.attn.proj, block.mlp.fc2, block.attn.qkv):
            layer.weight.zero_()
            layer.bias.zero_()
        for head in (0, 8):
            block.attn.qkv.bias[head] = GAIN
            block.attn.qkv.weight[16 + head, 0] = 1.0
    return network


@pytest.mark.parametrize("box", [(64, 64, 80, 80), (176, 0, 192, 16), (32, 48, 96, 128)])
def test_the_classifiers_peak_lies_in_the_object(box):
    network = classifier_of_bright_patches()
    image = scene(*box)
    found = record_classifier_attention(network, lambda: network(image[None] / 127.5 - 1))
    for weights in (found.class_token(), found.rollout()):
        heat = enlarge_map(weights[0].numpy(), (16, 16), (HEIGHT, WIDTH), False)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert in_box(x + 0.5, y + 0.5, np.array(box))
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    maps = ClassMaps("a 0.5", (found.class_token()[0].numpy(),))
    figure = class_attention_figure([grey], [("classifier", [maps])], ["final block"])
    assert in_box(*peak_in_picture(figure.axes[1]), np.array(box))
