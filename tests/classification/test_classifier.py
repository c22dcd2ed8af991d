"""The classifier: taps of any timm network, names of its weights, two heads, mistakes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from mokd_det.checkpoint import load_into, write_file
from mokd_det.classification import ClassificationBatch, ImageClassifier
from mokd_det.distillation import Combined, Distiller, HardDistillation, LogitDistillation, MoKD
from mokd_det.distillation.taps import TapRecorder, tap_specs
from mokd_det.errors import CheckpointError, ConfigError, DatasetError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec
from tests.classification.toy import CLASSES, ToyCnn, toy_batch, toy_vit
from tests.engine.toy import toy_item

NETWORKS = {
    # name → (options, side of the images, taps it offers besides logits and pooled)
    "deit_tiny_distilled_patch16_224": ({"img_size": 32}, 32, {"maps", "tokens", "dist_logits"}),
    "test_vit": ({"img_size": 32}, 32, {"maps", "tokens"}),
    "cait_xxs24_224": ({"img_size": 32}, 32, {"maps", "tokens"}),
    "test_resnet": ({}, 64, {"maps"}),
    "test_efficientnet": ({}, 64, {"maps"}),
    "convnext_atto": ({}, 64, {"maps"}),
    "mobilenetv3_small_050": ({}, 64, {"maps"}),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
        64,
        {"maps"},
    ),
    "levit_128s": ({}, 224, {"maps", "dist_logits"}),
}


def classifier(network: nn.Module | None = None, **options: object) -> ImageClassifier:
    torch.manual_seed(0)
    network = toy_vit(drop_path_rate=0.0) if network is None else network
    return ImageClassifier(network, num_classes=CLASSES, **options)


def batch(count: int = 4, soft: bool = True) -> ClassificationBatch:
    return toy_batch([toy_item(index) for index in range(count)], soft)


def record(model: ImageClassifier, images: torch.Tensor) -> dict:
    names = {name: name for name in model.taps}
    specs = tap_specs(model, names)
    with TapRecorder(model, names) as recorder:
        model(images)
    values = recorder.values
    assert set(values) == set(specs)
    return values


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_of_timms_networks(name: str) -> None:
    options, side, offered = NETWORKS[name]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES, **options)
    model = ImageClassifier(network, num_classes=CLASSES).eval()
    assert set(model.taps) == {"logits", "pooled", *offered}
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        plain = model(images)
        values = record(model, images)
        # Reading taps changes nothing, and nothing is changed against timm.
        assert torch.equal(model(images), plain) and torch.equal(network(images), plain)
        assert torch.equal(values["logits"], plain)
    sizes = {level.stride: level.tensor.shape[-2:] for level in values["maps"]}
    assert all(shape == (-(-side // s), -(-side // s)) or name == "levit_128s" for s, shape in sizes.items())
    if "tokens" in offered:
        tokens = values["tokens"]
        assert tokens.shape == (len(network.blocks), 2, (side // 16) ** 2, network.embed_dim)
        (level,) = values["maps"]
        torch.testing.assert_close(level.tensor.mean((2, 3)), values["pooled"])


def test_pooled_is_the_mean_of_the_patch_tokens_after_the_norm() -> None:
    model = classifier().eval()
    images = batch().images
    features = model.network.forward_features(images)
    torch.testing.assert_close(record(model, images)["pooled"], features[:, 2:].mean(1))


def test_tokens_and_maps_keep_the_order_of_the_patches() -> None:
    model = classifier().eval()
    values = record(model, batch().images)
    assert values["tokens"].shape == (2, 4, 9, 16)
    (level,) = values["maps"]
    assert level.tensor.shape == (4, 16, 3, 3) and level.stride == 2
    # The norm stands between the last block and the map.
    last = model.network.norm(values["tokens"][-1])
    torch.testing.assert_close(level.tensor, last.transpose(1, 2).reshape(4, 16, 3, 3))


def test_a_module_of_the_network_is_tapped_by_its_path() -> None:
    model = classifier().train()
    source = {"path": "network.blocks.0", "channels": 16, "num_tokens": 11}
    assert tap_specs(model, {"block": source})["block"].kind == "tokens"
    vectors = {"path": "network.head_dist", "kind": "vectors", "channels": CLASSES}
    with TapRecorder(model, {"block": source, "dist": vectors, "dist_logits": "dist_logits"}) as recorder:
        model(batch())
    assert recorder.values["block"].shape == (4, 11, 16)
    assert torch.equal(recorder.values["dist"], recorder.values["dist_logits"])


def test_a_network_that_marks_its_taps_offers_those() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 7, 3, 2, 1), nn.Linear(7, CLASSES)
            self.taps = nn.ModuleDict(
                {
                    "pre": TapPoint(TapSpec("maps", (7,), (2,))),
                    "logits": TapPoint(TapSpec("vectors", (CLASSES,))),
                }
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.taps["pre"]([FeatureMap(self.conv(images), None, 2)])
            return self.taps["logits"](self.fc(maps[0].tensor.relu().mean((2, 3))))

    model = classifier(Marked()).eval()
    assert set(model.taps) == {"pre", "logits"}
    values = record(model, batch().images)
    assert values["pre"][0].tensor.shape == (4, 7, 3, 3) and values["logits"].shape == (4, CLASSES)
    with TapRecorder(model, {"pre": "network.taps.pre"}) as recorder:
        model(batch().images)
    assert torch.equal(recorder.values["pre"][0].tensor, values["pre"][0].tensor)
    assert set(model.state_dict()) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


def test_any_module_has_logits_at_least() -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES))).eval()
    assert set(model.taps) == {"logits"}
    assert record(model, batch().images)["logits"].shape == (4, CLASSES)
    with pytest.raises(
        IncompatibleModelsError, match=r"\(Sequential\) does not give it; tap a module of it by its path"
    ):
        tap_specs(model, {"pooled": "pooled"})


def test_the_loss_is_cross_entropy_with_classes_or_distributions() -> None:
    model = classifier(ToyCnn()).train()
    for soft, wanted in ((True, SoftTargetCrossEntropy()), (False, nn.CrossEntropyLoss())):
        given = batch(soft=soft)
        logits = model.network(given.images)
        torch.testing.assert_close(model(given)["loss_cls"], wanted(logits, given.targets))
    smoothed = classifier(ToyCnn(), loss=nn.CrossEntropyLoss(label_smoothing=0.1)).train()
    torch.testing.assert_close(smoothed(batch(soft=False))["loss_cls"].shape, torch.Size([]))
    assert not torch.equal(smoothed(batch(soft=False))["loss_cls"], model(batch(soft=False))["loss_cls"])


def test_predictions_are_the_mean_of_both_heads() -> None:
    model = classifier().eval()
    images = batch().images
    features = model.network.forward_features(images)
    wanted = (model.network.head(features[:, 0]) + model.network.head_dist(features[:, 1])) / 2
    torch.testing.assert_close(model(images), wanted)
    assert torch.equal(model(batch()), model(images))


def test_the_heads_learn_from_labels_and_teacher_apart() -> None:
    student, teacher = classifier(), classifier(ToyCnn())
    taps = {"logits": {"student": "dist_logits", "teacher": "logits"}}
    model = Distiller(student, teacher, HardDistillation(), taps).train()
    losses = model(batch())
    losses["loss_cls"].backward(retain_graph=True)
    assert student.network.head.weight.grad.abs().sum() > 0 and student.network.head_dist.weight.grad is None
    student.zero_grad(set_to_none=True)
    losses["loss_distill_hard"].backward()
    assert student.network.head.weight.grad is None and student.network.head_dist.weight.grad.abs().sum() > 0


def test_a_distillation_head_that_nothing_trains_is_refused() -> None:
    student = classifier().train()
    with pytest.raises(
        IncompatibleModelsError, match=r"nothing trains the distillation head.*separate_heads=False"
    ):
        student(batch())
    alone = classifier(separate_heads=False).train()
    alone(batch())["loss_cls"].backward()
    assert all(parameter.grad is not None for parameter in alone.parameters())
    with pytest.raises(IncompatibleModelsError, match="separate_heads=False joins the distillation head"):
        tap_specs(alone, {"logits": "dist_logits"})


def test_a_missing_distillation_token_is_explained() -> None:
    plain = classifier(ToyCnn())
    taps = {"logits": {"student": "dist_logits", "teacher": "logits"}}
    with pytest.raises(
        IncompatibleModelsError, match=r"\(ToyCnn\) has no distillation token: take a distilled one"
    ):
        Distiller(plain, classifier(ToyCnn()), LogitDistillation(), taps)


def test_a_distilled_teacher_gives_what_it_predicts() -> None:
    teacher = classifier()
    model = Distiller(classifier(ToyCnn()), teacher, LogitDistillation(), {"logits": "logits"})
    prepared = model.prepare_batch(batch())
    assert torch.equal(prepared.teacher_taps["logits"], teacher(batch()))
    assert not prepared.teacher_taps["logits"].requires_grad


def test_names_of_the_weights_are_the_networks(tmp_path) -> None:
    model = classifier()
    network = toy_vit()
    assert list(model.state_dict()) == list(network.state_dict())
    network.load_state_dict(model.state_dict())
    write_file(network.state_dict(), tmp_path / "network.safetensors")
    other = classifier()
    nn.init.zeros_(other.network.head.weight)
    assert load_into(other, tmp_path / "network.safetensors").is_complete
    assert torch.equal(other.network.head.weight, model.network.head.weight)
    # inside of another module, too
    pair = nn.ModuleDict({"student": model})
    assert all(key.startswith("student.") and "network" not in key for key in pair.state_dict())
    pair.load_state_dict({key: torch.zeros_like(value) for key, value in pair.state_dict().items()})
    assert not model.network.head.weight.any()


def test_a_copy_taps_its_own_head() -> None:
    model = classifier().eval()
    twin = copy.deepcopy(model)
    nn.init.ones_(twin.network.head_dist.weight)
    twin.load_state_dict(twin.state_dict())
    with (
        TapRecorder(twin, {"dist": "dist_logits"}) as own,
        TapRecorder(model, {"dist": "dist_logits"}) as other,
    ):
        twin(batch())
    features = twin.network.forward_features(batch().images)
    torch.testing.assert_close(own.values["dist"], twin.network.head_dist(features[:, 1]))
    with pytest.raises(IncompatibleModelsError, match="did not run"):
        _ = other.values


def test_no_decay_for_tokens_and_positions() -> None:
    listed = classifier().no_weight_decay()
    assert {"network.pos_embed", "network.cls_token", "network.dist_token"} <= listed
    assert classifier(ToyCnn()).no_weight_decay() == set()


def test_is_registered() -> None:
    assert META_ARCH_REGISTRY.get("ImageClassifier") is ImageClassifier


def test_a_teacher_of_other_classes_distils_features_only() -> None:
    student, teacher = classifier(ToyCnn()), ImageClassifier(ToyCnn(num_classes=12), num_classes=12)
    Distiller(student, teacher, MoKD(), {"pooled": "pooled"}).train()(batch())
    with pytest.raises(IncompatibleModelsError, match="the student predicts 5 classes and the teacher 12"):
        Distiller(
            classifier(ToyCnn()),
            teacher,
            Combined({"kl": LogitDistillation()}),
            {"logits": "logits"},
        )


def test_a_teachers_file_of_other_classes_is_named(tmp_path) -> None:
    write_file(ToyCnn(num_classes=12).state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError, match=r"teacher\.pth'.*fc\.weight \[12, 24\] instead of \[5, 24\]"):
        Distiller(
            classifier(ToyCnn()),
            classifier(ToyCnn()),
            MoKD(),
            {"pooled": "pooled"},
            teacher_checkpoint=str(tmp_path / "teacher.pth"),
        )


def test_batches_of_other_classes_are_named() -> None:
    model = classifier(ToyCnn()).train()
    soft = batch()
    wide = ClassificationBatch(soft.images, torch.ones(4, 9), soft.labels, soft.indices, soft.names)
    with pytest.raises(DatasetError, match="distributions over 9 classes, the classifier has 5"):
        model(wide)
    hard = batch(soft=False)
    for value in (5, -1):
        targets = hard.targets.clone()
        targets[2] = value
        given = ClassificationBatch(hard.images, targets, hard.labels, hard.indices, hard.names)
        with pytest.raises(DatasetError, match=rf"image 'toy_2\.png' is of class {value}, .*num_classes=5"):
            model(given)
    short = ClassificationBatch(hard.images, hard.targets[:3], hard.labels, hard.indices, hard.names)
    with pytest.raises(DatasetError, match="4 images and 3 targets"):
        model(short)
    with pytest.raises(TypeError, match="training needs a ClassificationBatch"):
        model(hard.images)


def test_images_of_another_size_are_named() -> None:
    with pytest.raises(ConfigError, match=r"images of 8 x 8 pixels, but .*Distilled is built for 6 x 6"):
        classifier().eval()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="has num_classes=5, its classifier is told 7"):
        ImageClassifier(ToyCnn(), num_classes=7)
