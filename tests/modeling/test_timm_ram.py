"""A timm model as a backbone with DET tokens: shapes, masks, sizes, gradients, weights from files, errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.modeling.backbone import DET_BACKBONES, TimmRAM

from .test_vidt import item, small_vidt

HOSTS = ("convnext_atto", "pvt_v2_b0", "resnet18")
SMALL = {"num_det_tokens": 9, "det_channels": 16, "pos_channels": 64, "num_heads": 4}


def backbone(host: str = "convnext_atto", **options: object) -> TimmRAM:
    torch.manual_seed(0)
    return TimmRAM(host, **{**SMALL, **options})


@pytest.fixture(scope="module")
def shared() -> TimmRAM:
    """For tests that only look."""
    return backbone().eval()


def batch(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images of these sizes on a common canvas, zero on padding, and their padding mask."""
    height, width = (max(side) for side in zip(*sizes))
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for padded, (h, w) in zip(mask, sizes):
        padded[:h, :w] = False
    images = torch.randn(len(sizes), 3, height, width, generator=torch.Generator().manual_seed(seed))
    return images.masked_fill(mask[:, None], 0.0), mask


def test_is_registered() -> None:
    assert DET_BACKBONES.get("timm") is TimmRAM


@pytest.mark.parametrize("host", HOSTS)
def test_every_parameter_trains_in_a_detector(host: str) -> None:
    model = small_vidt().train()
    model = type(model)(
        backbone=backbone(host),
        neck=type(model.neck)(),
        transformer=model.transformer,
        num_classes=5,
        criterion=model.criterion,
    ).train()
    losses = model([item(64, 48), item(40, 72, boxes=0, seed=1)])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without, "DistributedDataParallel would wait for these"
    # timm starts the last norm of a ResNet's blocks at 0, so the host's first gradients may be
    own = {name: p for name, p in model.backbone.named_parameters() if not name.startswith("host.")}
    assert not {name for name, p in own.items() if not p.grad.any()}


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 64), (100, 40)])
def test_any_size_gives_whole_cells_like_swin(shared: TimmRAM, size: tuple[int, int]) -> None:
    images, mask = batch([size])
    with torch.no_grad():
        features = shared(images, mask)
        swin = small_vidt().backbone.eval()(images, mask)
    assert [level.shape[-2:] for level in features.patch_features] == [
        level.shape[-2:] for level in swin.patch_features
    ]
    assert tuple(level.shape[1] for level in features.patch_features) == shared.channels
    assert features.det_tokens.shape == (1, 9, 16) and features.det_pos.shape == (1, 9, 64)


def test_batch_norm_trains_on_one_tiny_image() -> None:
    images, mask = batch([(5, 5)])
    assert all(
        torch.isfinite(level).all() for level in backbone("resnet18").train()(images, mask).patch_features
    )


def test_padding_of_the_batch_is_not_seen(shared: TimmRAM) -> None:
    """Neither tokens nor the merged level change with what the host says about padding."""
    images, mask = batch([(64, 64), (64, 32)])

    def garbage(module: nn.Module, inputs: object, output: list[torch.Tensor]) -> list[torch.Tensor]:
        spoilt = [level.clone() for level in output]
        for level in spoilt:
            level[1, :, :, level.shape[-1] // 2 :] += 100.0
        return spoilt

    with torch.no_grad():
        clean = shared(images, mask)
        handle = shared.host.register_forward_hook(garbage)
        spoilt = shared(images, mask)
        unmasked = shared(images, torch.zeros_like(mask))
        handle.remove()
    assert not torch.equal(spoilt.patch_features[2][1], clean.patch_features[2][1])
    torch.testing.assert_close(spoilt.det_tokens, clean.det_tokens)
    torch.testing.assert_close(spoilt.patch_features[3], clean.patch_features[3])
    assert (unmasked.det_tokens[1] - clean.det_tokens[1]).abs().max() > 1e-3


def test_an_image_alone_equals_itself_in_a_batch_of_equal_sizes(shared: TimmRAM) -> None:
    images, mask = batch([(48, 64)] * 3)
    with torch.no_grad():
        together, alone = shared(images, mask), shared(images[1:2], mask[1:2])
    torch.testing.assert_close(together.det_tokens[1:2], alone.det_tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.patch_features[3][1:2], alone.patch_features[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(32,), (8, 32), (16,)])
def test_tokens_see_the_image_in_the_chosen_stages_only(strides: tuple[int, ...]) -> None:
    """The gradient of the tokens reaches the host through these stages and through no other."""
    model = backbone(cross_strides=strides, det_depths=(1, 2, 1)).eval()
    assert [stage.patch_proj is not None for stage in model.stages] == [s in strides for s in (8, 16, 32)]
    maps: list[torch.Tensor] = []

    def detached(module: nn.Module, inputs: object, output: list[torch.Tensor]) -> list[torch.Tensor]:
        maps[:] = [level.detach().requires_grad_() for level in output]
        return maps

    model.host.register_forward_hook(detached)
    model(*batch([(64, 64)])).det_tokens.square().sum().backward()
    assert [level.grad is not None for level in maps] == [s in strides for s in (8, 16, 32)]


def test_the_position_is_part_of_the_keys(shared: TimmRAM) -> None:
    """Without it, tokens could not tell a flipped map from the map."""
    _, mask = batch([(64, 64)])
    level = torch.randn(1, shared.channels[2], 2, 2, generator=torch.Generator().manual_seed(1))
    stage, tokens = shared.stages[2], shared.det_token
    with torch.no_grad():
        mask = mask[:, ::32, ::32]
        first, flipped = (stage(tokens, shared.det_pos_embed, x, mask) for x in (level, level.flip(-1)))
    assert (first - flipped).abs().max() > 1e-4


def test_maps_are_the_hosts_own() -> None:
    model = backbone("pvt_v2_b0").eval()
    images, mask = batch([(64, 96)])
    with torch.no_grad():
        expected = model.host(images)
        found = model(images, mask).patch_features
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def test_a_host_with_channels_last() -> None:
    model = backbone("swin_tiny_patch4_window7_224", host_options={"img_size": 64}).eval()
    with torch.no_grad():
        features = model(*batch([(64, 50)]))
    assert [level.shape for level in features.patch_features][:3] == [
        (1, 192, 8, 7),
        (1, 384, 4, 4),
        (1, 768, 2, 2),
    ]


def test_frozen_batch_norm_is_constant() -> None:
    model = backbone("resnet18", frozen_batch_norm=True).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.named_buffers()}
    features = model(*batch([(64, 64)]))
    sum(level.square().sum() for level in [*features.patch_features, features.det_tokens]).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "det_pos_embed")


def test_host_options_reach_the_host() -> None:
    assert backbone("resnet18", host_options={"output_stride": 32, "drop_path_rate": 0.5}).training
    rates = [
        module.drop_prob
        for module in backbone(host_options={"drop_path_rate": 0.5}).host.modules()
        if hasattr(module, "drop_prob")
    ]
    assert max(rates) == pytest.approx(0.5)


def test_bfloat16_autocast_and_float64(shared: TimmRAM) -> None:
    images, mask = batch([(64, 64)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = shared(images, mask)
    with torch.no_grad():
        high = backbone().double().eval()(images.double(), mask)
        full = shared(images, mask)
    assert high.det_tokens.dtype == torch.float64
    torch.testing.assert_close(full.det_tokens.double(), high.det_tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low.det_tokens.float(), full.det_tokens, rtol=0.1, atol=0.1)


# --- weights of the host --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's file as timm writes it."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "convnext_atto.pth"
    torch.save(timm.create_model("convnext_atto", pretrained=False).state_dict(), path)
    return path


def test_weights_come_from_a_local_file(published: Path) -> None:
    model = backbone(weights=str(published))
    weights = torch.load(published, weights_only=True)
    torch.testing.assert_close(model.host.stem_0.weight.data, weights["stem.0.weight"])
    torch.testing.assert_close(
        model.host.stages_3.blocks[1].mlp.fc1.weight.data, weights["stages.3.blocks.1.mlp.fc1.weight"]
    )
    assert "state_dict" not in model.host.pretrained_cfg, "the weights would be kept twice"
    # the rest starts as it would have without the file
    assert torch.equal(model.det_token, backbone().det_token)


def test_weights_that_do_not_fit_are_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights of convnext_atto 'none\.pth' do not exist"):
        backbone(weights="none.pth")
    with pytest.raises(CheckpointError, match=r"do not fit resnet18: .* are not in the file, e\.g\. 'conv1"):
        backbone("resnet18", weights=str(published))
    with pytest.raises(CheckpointError, match="do not fit convnext_femto: RuntimeError"):
        backbone("convnext_femto", weights=str(published))
    weights = torch.load(published, weights_only=True)
    del weights["stages.2.blocks.0.conv_dw.weight"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(
        CheckpointError, match=r"1 of its \d+ weight matrices .* 'stages_2\.blocks\.0\.conv_dw"
    ):
        backbone(weights=str(tmp_path / "part.pth"))
    (tmp_path / "broken.pth").write_bytes(published.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"broken\.pth' do not fit convnext_atto"):
        backbone(weights=str(tmp_path / "broken.pth"))


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"stem.0.weight": Trap(tmp_path / "ran")}, tmp_path / "code.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"code\.pth' do not fit"):
        backbone(weights=str(tmp_path / "code.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "convnext_ato"}, r"has no model 'convnext_ato'; did you mean convnext_atto"),
        ({"host": "hf-hub:some/model"}, "has no model 'hf-hub:some/model'"),
        ({"host": "vit_tiny_patch16_224"}, r"maps of strides \(16, 16, 16\).*needs those of \(8, 16, 32\)"),
        (
            {"host": "resnet18", "host_options": {"out_indices": [0, 1]}},
            r"strides \(2, 4\) for out_indices=\(0, 1\)",
        ),
        (
            {"host_options": {"depth": 3}},
            "timm cannot build the feature maps of convnext_atto with .*'depth'",
        ),
        ({"weights": "x.pth", "download": True}, "contradict each other"),
        ({"det_channels": 18}, r"det_channels=18 must be a multiple of 4 .* num_heads=4"),
        ({"det_depths": (1, 1)}, r"det_depths=\(1, 1\) must hold one number"),
        ({"cross_strides": (4,)}, r"cross_strides=\(4,\) names 4"),
        ({"det_depths": (1, 0, 1), "cross_strides": (16,)}, r"names 16, which must .* have blocks"),
        ({"cross_strides": ()}, "never see the image"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbone(**options)
