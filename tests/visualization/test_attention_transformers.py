"""Where Hugging Face's queries look: what is recorded is what the layers compute, and recording changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mokd_det.errors import ConfigError
from mokd_det.modeling import TransformersDetector
from mokd_det.visualization.attention_figure import layer_attention_figure, object_attention_figure
from mokd_det.visualization.attention_transformers import record_transformers_attention
from tests.modeling.tiny_transformers import LABELS, TINY, tiny_config

pytest.importorskip("transformers")

ATTENDING = {name for name in TINY if TINY[name]["model_type"] in
             ("detr", "table-transformer", "conditional_detr", "dab-detr", "yolos")}  # fmt: skip


def images() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
            "height": 2 * height,
            "width": 3 * width,
        }
        for height, width in ((64, 96), (96, 64))
    ]


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family_shows_where_it_looks(name: str) -> None:
    torch.manual_seed(0)
    padded = name in ATTENDING and not name.startswith("Yolos")
    model = TransformersDetector(
        tiny_config(name), image_size=None if padded else 128 if "Deformable" in name else 64
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some start at 0, and attend to all alike
            parameter.add_(torch.randn_like(parameter) * 0.05)
        before = model(images())
    implementation = model.detector.config._attn_implementation
    found = record_transformers_attention(model, images())
    assert model.detector.config._attn_implementation == implementation
    with torch.no_grad():
        after = model(images())
    for ours, theirs in zip(before, after, strict=True):
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
    layers = model.taps["head"].spec.num_levels
    for attention, item, output in zip(found, images(), before, strict=True):
        assert attention.scores.shape == (model.num_queries,)
        best = float(output["instances"].scores.max())
        assert attention.scores.max() == pytest.approx(best, abs=1e-5)
        if name in ATTENDING:
            assert len(attention.cross) == layers and not attention.sampling
            for cross in attention.cross:
                np.testing.assert_allclose(cross.weights.sum(-1), 1.0, atol=1e-5)
                assert cross.weights.shape[1] == model.num_queries and cross.weights.std() > 0
            continue
        assert len(attention.sampling) == layers and not attention.cross
        for points in attention.sampling:
            np.testing.assert_allclose(points.weights.sum((2, 3)), 1.0, atol=1e-5)
            assert points.points.shape == (*points.weights.shape, 2)
            inside = (points.points >= 0) & (points.points <= [item["width"], item["height"]])
            assert inside.all(-1).mean() > 0.2
    if padded:
        # The second image is 64 of the batch's 96 pixels wide: its padding gets nothing.
        maps = found[1].cross[-1].maps()
        assert (maps[:, :, 2:] == 0).all() and (maps[:, :, :2] > 0).all()
    picture = np.zeros((128, 288, 3), dtype=np.uint8)
    for figure in (object_attention_figure, layer_attention_figure):
        figure(picture, [(name, found[0])], list(LABELS.values()), threshold=0.0, max_objects=2)


def test_the_points_and_weights_are_what_the_layer_reads() -> None:
    """Reading the maps at the recorded points with the recorded weights gives the layer's output."""
    torch.manual_seed(0)
    model = TransformersDetector(
        tiny_config("DFineForObjectDetection", decoder_n_points=[1, 3, 2]), image_size=64
    ).eval()
    layer = model.detector.get_submodule("model.decoder.layers.1.encoder_attn")
    seen: dict[str, Any] = {}

    def keep(module: nn.Module, args: Any, given: Any, output: Any) -> None:
        seen.update(given, output=output[0])

    layer.register_forward_hook(keep, with_kwargs=True)
    item = images()[0]
    attention = record_transformers_attention(model, [item])[0]
    sampling = attention.sampling[1]
    heads, shapes = sampling.weights.shape[1], seen["spatial_shapes_list"]
    values = seen["encoder_hidden_states"].unflatten(-1, (heads, -1))[0]  # (cells, heads, C)
    levels = values.split([h * w for h, w in shapes])
    size = torch.tensor([item["width"], item["height"]])
    expected = torch.zeros(sampling.weights.shape[0], heads, values.shape[-1])
    for number, (level, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        maps = level.permute(1, 2, 0).unflatten(-1, (height, width))
        grid = torch.from_numpy(sampling.points[:, :, number]).float() / size * 2 - 1  # (N, heads, points, 2)
        read = nn.functional.grid_sample(
            maps, grid.transpose(0, 1), align_corners=False
        )  # (heads, C, N, points)
        weights = (
            torch.from_numpy(sampling.weights[:, :, number]).float().transpose(0, 1)
        )  # (heads, N, points)
        expected += (read * weights[:, None]).sum(-1).permute(2, 0, 1)
    torch.testing.assert_close(seen["output"][0], expected.flatten(1), rtol=1e-4, atol=1e-5)
    assert (sampling.weights[:, :, 0, 1:] == 0).all() and (sampling.weights[:, :, 1] > 0).all()


def test_points_that_are_rounded_are_refused() -> None:
    model = TransformersDetector(
        tiny_config("RTDetrV2ForObjectDetection", decoder_method="discrete"), image_size=64
    )
    with pytest.raises(ConfigError, match="decoder_method='discrete' rounds its sampling points"):
        record_transformers_attention(model.eval(), images())
