"""ViDT as a Detectron2 model: batches of different sizes, formats, initialisation, training, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from mokd_det.errors import ConfigError
from mokd_det.modeling import (
    EPFF,
    DeformableTransformer,
    HungarianMatcher,
    InputProjection,
    SetCriterion,
    ViDT,
)
from mokd_det.modeling.backbone import DET_BACKBONES, SwinRAM, register_backbone, swin_nano


def small_vidt(**options: object) -> ViDT:
    """A ViDT small enough to train in a test."""
    torch.manual_seed(0)
    classes = options.pop("num_classes", 5)
    settings = {
        "num_layers": 2,
        "ffn_dim": 32,
        "embed_dim": 64,
        "num_heads": 4,
        **options.pop("transformer", {}),
    }
    backbone = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
    backbone |= {"num_det_tokens": 9, "pos_channels": 64, **options.pop("backbone", {})}
    criterion = SetCriterion(num_classes=classes, matcher=HungarianMatcher(), **options.pop("criterion", {}))
    return ViDT(
        **{
            "backbone": SwinRAM(**backbone),
            "neck": InputProjection(),
            "transformer": DeformableTransformer(**settings),
            "num_classes": classes,
            "criterion": criterion,
            **options,
        }
    )


def item(height: int, width: int, boxes: int = 2, seed: int = 0) -> dict:
    """One training input."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(boxes, 2, generator=generator) * 0.5
    corners = torch.cat((low, low + 0.1 + 0.3 * torch.rand(boxes, 2, generator=generator)), 1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(corners * torch.tensor([width, height, width, height]))
    instances.gt_classes = torch.randint(0, 5, (boxes,), generator=generator)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "height": 2 * height,
        "width": 2 * width,
        "image_id": seed,
    }


def test_registered_and_built_by_lazy_config() -> None:
    assert META_ARCH_REGISTRY.get("ViDT") is ViDT
    config = LazyCall(ViDT)(
        backbone=LazyCall(swin_nano)(num_det_tokens=7),
        neck=LazyCall(EPFF)(),
        transformer=LazyCall(DeformableTransformer)(num_layers=1),
        num_classes=3,
    )
    model = instantiate(config)
    assert model.num_queries == 7 and model.neck.strides == (64, 32, 16, 8)


def test_training_returns_every_loss_and_trains_every_parameter() -> None:
    model = small_vidt().train()
    losses = model([item(64, 48), item(40, 72, boxes=0, seed=1)])
    names = {f"loss_{kind}{level}" for kind in ("ce", "bbox", "giou") for level in ("", "_0", "_1")}
    assert set(losses) == names
    sum(losses.values()).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without, "DistributedDataParallel would wait for these"


def test_vidt_plus_trains_every_parameter() -> None:
    weights = {"ce": 2.0, "bbox": 5.0, "giou": 2.0, "iouaware": 2.0, "token_focal": 2.0, "token_dice": 2.0}
    model = small_vidt(
        neck=EPFF(hidden_dim=8),
        iou_head=True,
        transformer={"token_classes": 6},
        criterion={"weights": weights},
    ).train()
    batch = [item(64, 48)]
    batch[0]["instances"].gt_masks = BitMasks(torch.ones(2, 64, 48, dtype=torch.bool))
    losses = model(batch)
    assert {"loss_token_focal", "loss_token_dice", "loss_iouaware", "loss_iouaware_0"} <= set(losses)
    sum(losses.values()).backward()
    assert not {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def test_inference_output_is_detectron2s() -> None:
    model = small_vidt(topk=20).eval()
    with torch.no_grad():
        outputs = model([item(64, 48), {"image": item(40, 72)["image"]}])
    first, second = (output["instances"] for output in outputs)
    assert first.image_size == (128, 96), "detections are given in the original image"
    assert second.image_size == (40, 72), "without a stated size the input's is the original"
    assert len(first) == 20 and first.pred_boxes.tensor.shape == (20, 4)
    assert (
        first.pred_classes.dtype == torch.int64
        and 0 <= first.pred_classes.min() <= first.pred_classes.max() < 5
    )
    assert (first.scores.diff() <= 0).all() and 0 < first.scores.max() < 1


def test_normalisation_and_padding() -> None:
    model = small_vidt()
    batch = [item(8, 6), item(4, 10)]
    images, mask = model.preprocess(batch)
    assert images.shape == (2, 3, 8, 10) and mask.shape == (2, 8, 10)
    expected = (batch[0]["image"].float() - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(images[0, :, :, :6], expected)
    assert not images[0, :, :, 6:].any() and not images[1, :, 4:].any()
    assert not mask[0, :, :6].any() and mask[0, :, 6:].all() and mask[1, 4:].all()


def test_targets_are_relative_to_the_unpadded_image() -> None:
    model = small_vidt()
    batch = [item(100, 50, boxes=0), item(50, 100, boxes=1)]
    batch[1]["instances"].gt_boxes = Boxes(torch.tensor([[10.0, 5.0, 50.0, 45.0]]))
    targets = model.targets(batch, (100, 100))
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.3, 0.5, 0.4, 0.8]]))
    assert targets.counts == (0, 1)


def test_an_image_is_detected_alike_alone_and_in_a_batch_of_equal_sizes() -> None:
    model = small_vidt().double().eval()
    batch = [item(64, 48, seed=i) for i in range(3)]
    with torch.no_grad():
        images, mask = model.preprocess(batch)
        together = model.forward_tensors(images, mask)
        alone = model.forward_tensors(images[1:2], mask[1:2])
    torch.testing.assert_close(together.boxes[:, 1:2], alone.boxes, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together.logits[:, 1:2], alone.logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 17), (64, 64)])
def test_any_image_size_trains(size: tuple[int, int]) -> None:
    model = small_vidt().train()
    losses = model([item(*size, boxes=1)])
    assert all(torch.isfinite(value) for value in losses.values())


def test_drop_path_draws_once_per_image_for_both_kinds_of_token() -> None:
    block = small_vidt(backbone={"drop_path": 0.9}).backbone.layers[3].blocks[0]
    block.train()
    assert block.drop_path == pytest.approx(0.9)
    patches, det = torch.ones(64, 2, 2, 3), torch.ones(64, 4, 3)
    dropped_patches, dropped_det = block._drop(patches, det)
    factors = dropped_patches[:, 0, 0, 0]
    torch.testing.assert_close(dropped_patches, factors.view(-1, 1, 1, 1).expand_as(patches))
    torch.testing.assert_close(dropped_det, factors.view(-1, 1, 1).expand_as(det))
    for factor in factors.tolist():
        assert factor == pytest.approx(0.0) or factor == pytest.approx(10.0, rel=1e-5)
    assert 0 < (factors > 0).sum() < 32
    block.eval()
    assert block._drop(patches, det)[0] is patches


def test_initial_weights() -> None:
    """The published start: prior 0.01, small first boxes, xavier decoder, trunc-normal tokens, learned reference."""
    torch.manual_seed(0)
    model = ViDT(
        backbone=swin_nano(), neck=InputProjection(), transformer=DeformableTransformer(), num_classes=91
    )
    for level, (classes, boxes) in enumerate(zip(model.class_embed, model.bbox_embed)):
        torch.testing.assert_close(classes.bias.sigmoid(), torch.full((91,), 0.01))
        assert not boxes.layers[-1].weight.any()
        expected = [0.0, 0.0, -2.0, -2.0] if level == 0 else [0.0] * 4
        assert boxes.layers[-1].bias.tolist() == expected
    assert torch.equal(model.class_embed[0].weight, model.class_embed[6].weight)
    assert model.class_embed[0].weight is not model.class_embed[6].weight
    layers = model.transformer.decoder.layers
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)
    limit = (6 / (256 + 1024)) ** 0.5
    assert layers[0].linear1.weight.detach().abs().max() == pytest.approx(limit, rel=1e-3)
    assert layers[0].linear1.bias.detach().abs().max() == pytest.approx(
        1 / 16, rel=2e-2
    )  # torch's default, not zero
    assert model.transformer.reference_points.bias.detach().abs().min() > 0
    assert model.backbone.det_token.detach().std() == pytest.approx(0.02, rel=0.05)
    qkv = model.backbone.layers[0].blocks[0].attn.qkv.weight.detach()
    assert qkv.abs().max() == pytest.approx(48**-0.5, rel=1e-2)  # torch's default, not Swin's 0.02
    assert model.input_proj[0][0].weight.detach().abs().max() == pytest.approx(
        (6 / (96 + 256)) ** 0.5, rel=1e-2
    )


def test_grid_reference_starts_on_a_grid() -> None:
    model = small_vidt(transformer={"reference_init": "grid", "num_queries": 9})
    pos = (
        model.query_pos_proj(model.backbone.det_pos_embed.transpose(1, 2).unsqueeze(-1))
        .squeeze(-1)
        .transpose(1, 2)
    )
    points = model.transformer.initial_reference(pos).sigmoid()[0]
    thirds = torch.tensor([1 / 6, 0.5, 5 / 6])
    expected = torch.stack((thirds.repeat(3), thirds.repeat_interleave(3)), -1)
    torch.testing.assert_close(points.detach(), expected)


def test_learns_to_overfit_two_images() -> None:
    """The whole chain trains: two images are learned by heart within 100 steps."""
    model = small_vidt(criterion={"class_loss": "iou_aware_bce"}, transformer={"dropout": 0.0}).train()
    batch = [item(64, 64, seed=i) for i in range(2)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    values = []
    for _ in range(100):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("neck", [InputProjection, EPFF])
def test_groups_of_the_norms_are_32_as_published_unless_the_neck_says_otherwise(neck: type) -> None:
    for options, groups in (({}, 32), ({"norm_groups": 8}, 8)):
        model = small_vidt(neck=neck(**options))
        norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        assert len(norms) == 6 and {norm.num_groups for norm in norms} == {groups}


def test_taps_are_described_before_the_model_runs() -> None:
    model = small_vidt()
    specs = {name: tap.spec for name, tap in model.taps.items()}
    assert specs["patch"].strides == (8, 16, 32, 64) and specs["patch"].channels == (64,) * 4
    assert (specs["neck"].num_tokens, specs["head"].num_levels) == (9, 3)
    seen: dict[str, object] = {}
    for name, tap in model.taps.items():
        tap.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    model.eval()([item(64, 48)])
    assert [tuple(level.tensor.shape) for level in seen["patch"]] == [
        (1, 64, 8, 6), (1, 64, 4, 3), (1, 64, 2, 2), (1, 64, 1, 1)
    ]  # fmt: skip
    assert seen["neck"].shape == (1, 9, 64) and seen["head"].shape == (3, 1, 9, 64)
    assert torch.equal(seen["head"][0], seen["neck"]), "level 0 of the head is what enters the decoder"


def test_bfloat16_autocast_trains() -> None:
    model = small_vidt().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([item(64, 48)])
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())


def test_register_your_own_backbone() -> None:
    @register_backbone("test_tiny_swin")
    def build(**options: object) -> SwinRAM:
        return SwinRAM(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), **options)

    assert DET_BACKBONES.get("test_tiny_swin")(num_det_tokens=3).num_det_tokens == 3
    with pytest.raises(AssertionError, match="already registered"):
        register_backbone("test_tiny_swin")(build)


def test_errors_name_the_setting() -> None:
    with pytest.raises(ValueError, match="model has 4 classes, its criterion 5"):
        model = small_vidt()
        ViDT(
            backbone=copy.deepcopy(model.backbone),
            neck=InputProjection(),
            transformer=DeformableTransformer(embed_dim=64),
            num_classes=4,
            criterion=model.criterion,
        )
    with pytest.raises(ValueError, match="unknown stem 'resnet'"):
        small_vidt(backbone={"stem": "resnet"})
    with pytest.raises(ValueError, match='must be "learned" or "grid"'):
        small_vidt(transformer={"reference_init": "random"})
    with pytest.raises(ConfigError, match=r"norm_groups=24: must divide the 64 channels.*32 groups of 8"):
        small_vidt(neck=InputProjection(norm_groups=24))
    with pytest.raises(ValueError, match="four stages"):
        small_vidt(backbone={"depths": (2, 2)})
    with pytest.raises(ValueError, match='"focal" or "iou_aware_bce"'):
        small_vidt(criterion={"class_loss": "bce"})
    model = small_vidt()
    model.criterion = None
    with pytest.raises(ValueError, match="without a criterion"):
        model.train()([item(64, 48)])
