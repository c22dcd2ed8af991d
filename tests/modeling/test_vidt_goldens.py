"""ViDT and ViDT+ reproduce the official implementation: taps, predictions, losses, matching, gradients, detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from mokd_det.modeling import ViDT, top_predictions
from mokd_det.modeling.vidt import ViDTOutput

from . import golden

VARIANTS = ("vidt_swin_nano", "vidtplus_swin_nano_det300")
DTYPES = {"f64": torch.float64, "f32": torch.float32}
# largest absolute difference per kind of tensor; float64 decides, the decoder amplifies float32's rounding
TOLERANCE = {
    "f64": {"features": 1e-9, "states": 1e-8, "boxes": 1e-9, "reference": 1e-12},
    "f32": {"features": 1e-4, "states": 2e-3, "boxes": 2e-4, "reference": 1e-5},
}
LOSS_RTOL = {"f64": 1e-9, "f32": 1e-4}
GRAD_NORM_RTOL = {
    "vidt_swin_nano": {"f64": 1e-8, "f32": 2e-2},
    "vidtplus_swin_nano_det300": {"f64": 1e-6, "f32": 2e-2},
}
GRAD_RTOL = {"f64": 1e-7, "f32": 5e-2}  # of the largest stored value


@dataclass
class Run:
    """One forward of the official weights on the official input."""

    variant: str
    precision: str
    case: dict
    stored: dict[str, np.ndarray]
    model: ViDT
    output: ViDTOutput
    tensors: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def _run(variant: str, name: str, precision: str) -> Run:
    case = golden.golden(f"golden_{variant}")["cases"][name]
    with np.load(golden.FOLDER / f"golden_{variant}_{name}_{precision}.npz") as file:
        stored = dict(file)
    model = golden.build(variant).to(DTYPES[precision])
    tensors: dict[str, Tensor] = {}

    def record(path: str, store) -> None:
        model.get_submodule(path).register_forward_hook(lambda _module, _inputs, out: store(out))

    def joined(prefix: str):
        # DET tokens that do not depend on the image come once
        return lambda out: tensors.__setitem__(
            prefix, torch.cat([out[0].flatten(1, 2), out[1].expand(len(out[0]), -1, -1)], 1)
        )

    def backbone(out) -> None:
        tensors.update({f"backbone.patch.{i}": feature for i, feature in enumerate(out.patch_features)})
        tensors["backbone.det"] = out.det_tokens.transpose(1, 2)
        tensors["backbone.det_pos"] = out.det_pos.transpose(1, 2)

    def patch(out) -> None:
        for i, level in enumerate(out):
            tensors[f"srcs.{i}"] = level.tensor
            tensors[f"masks.{i}"] = level.padding_mask

    record("backbone", backbone)
    record("taps.patch", patch)
    record("taps.neck", lambda out: tensors.__setitem__("det_tgt", out))
    record("taps.head", lambda out: tensors.update({f"hs.{i}": level for i, level in enumerate(out)}))
    record("query_pos_proj", lambda out: tensors.__setitem__("det_pos", out.squeeze(-1).transpose(1, 2)))
    record(
        "transformer",
        lambda out: tensors.update(
            {
                "init_reference": out.init_reference,
                **{f"inter_references.{i}": b for i, b in enumerate(out.boxes)},
            }
        ),
    )
    for i, stage in enumerate(model.backbone.layers):
        for j in range(len(stage.blocks)):
            record(f"backbone.layers.{i}.blocks.{j}", joined(f"probe.block.{i}.{j}"))
        record(f"backbone.layers.{i}.blocks.{len(stage.blocks) - 1}", joined(f"backbone.stage{i}.out"))
    for i in range(len(model.transformer.decoder.layers)):
        path = f"transformer.decoder.layers.{i}"
        record(
            f"{path}.self_attn", lambda out, i=i: tensors.__setitem__(f"probe.decoder.{i}.self_attn", out[0])
        )
        record(
            f"{path}.cross_attn", lambda out, i=i: tensors.__setitem__(f"probe.decoder.{i}.cross_attn", out)
        )
    output = model.forward_tensors(*golden.images(case, DTYPES[precision]), label_tokens=True)
    for i in range(len(output.logits)):
        tensors[f"pred_logits.{i}"], tensors[f"pred_boxes.{i}"] = output.logits[i], output.boxes[i]
        if output.iou_logits is not None:
            tensors[f"pred_ious.{i}"] = output.iou_logits[i]
    for i, level in enumerate(output.token_logits or []):
        tensors[f"enc_tokens.{i}"] = level
    return Run(variant, precision, case, stored, model, output, tensors)


@pytest.fixture(
    scope="module",
    params=[(v, c, p) for v in VARIANTS for c in ("pad", "odd") for p in ("f64", "f32")],
    ids=lambda param: "-".join(param),
)
def run(request: pytest.FixtureRequest) -> Run:
    return _run(*request.param)


def _kind(name: str) -> str:
    if name.startswith(("pred_boxes", "inter_references")):
        return "boxes"
    if name == "init_reference":
        return "reference"
    if name.startswith(("hs.", "pred_logits", "pred_ious", "probe.decoder", "enc_tokens")) and name != "hs.0":
        return "states"
    return "features"


def _losses(run: Run, name: str) -> dict[str, Tensor]:
    rows = golden.golden(f"golden_{run.variant}")["targets"][name]
    targets = golden.targets(rows, run.dtype, run.case)
    return run.model.criterion(
        run.output.logits,
        run.output.boxes,
        targets,
        iou_logits=run.output.iou_logits,
        token_logits=run.output.token_logits,
    )


def test_generator_of_the_fixture_numbers_is_unchanged() -> None:
    expected = golden.golden("golden_vidt_swin_nano")["fill_check"]["noise('check', (4,))"]
    np.testing.assert_array_equal(golden.noise("check", (4,)), np.float32(expected))


def test_tensors(run: Run) -> None:
    """Every tensor on the way, from the patch embedding's first block to the predictions of all levels."""
    compared = 0
    for name, tensor in run.tensors.items():
        if name not in run.stored:
            continue
        expected = run.stored[name]
        if "valid" not in name and not name.startswith("probe."):
            assert list(tensor.shape) == run.case["tensors"][name], name
        actual = golden.stored(name, tensor, 64 if name.startswith("probe.") else 256)
        if tensor.dtype == torch.bool:
            np.testing.assert_array_equal(actual, expected.astype(bool), err_msg=name)
        else:
            difference = np.abs(actual - expected).max()
            assert difference <= TOLERANCE[run.precision][_kind(name)], f"{name}: {difference:.1e}"
        compared += 1
    assert compared >= 64, "the golden holds more tensors than the test compared"


@pytest.mark.parametrize("name", ["some", "one_empty", "all_empty"])
def test_losses(run: Run, name: str) -> None:
    expected = run.case[run.precision][name]
    losses = _losses(run, name)
    wanted = {k: v for k, v in expected["losses"].items() if k.startswith("loss_")}
    assert set(losses) == set(wanted)
    for key, value in wanted.items():
        assert losses[key].item() == pytest.approx(value, rel=LOSS_RTOL[run.precision], abs=1e-12), key
    total = sum(run.model.criterion.weighted(losses).values()).item()
    assert total == pytest.approx(expected["total"], rel=LOSS_RTOL[run.precision])


@pytest.mark.parametrize("name", ["some", "one_empty", "all_empty"])
def test_matching(run: Run, name: str) -> None:
    rows = golden.golden(f"golden_{run.variant}")["targets"][name]
    matches = run.model.criterion.matcher(
        run.output.logits, run.output.boxes, golden.targets(rows, run.dtype)
    )
    actual = [[[list(map(int, q)), list(map(int, t))] for q, t in level] for level in matches.per_level]
    assert actual == run.case[run.precision][name]["matcher_by_level"]


def test_gradients(run: Run) -> None:
    """Gradient norm of every parameter and sampled gradient values of twenty of them."""
    model, expected = run.model, run.case[run.precision]["some"]
    model.zero_grad(set_to_none=True)
    sum(model.criterion.weighted(_losses(run, "some")).values()).backward(retain_graph=True)
    parameters = dict(model.named_parameters())
    rtol = GRAD_NORM_RTOL[run.variant][run.precision]
    names = golden.golden(f"keys_{run.variant}")["named_parameter_order"]
    assert len(names) == len(parameters)
    squares = 0.0
    for name, norm in zip(names, run.stored["grad_norms"]):
        parameter = parameters[name.replace("transformer.decoder.bbox_embed", "bbox_embed")]
        if np.isnan(norm):
            assert parameter.grad is None, f"{name} must not receive a gradient"
            continue
        assert parameter.grad is not None, f"{name} receives no gradient"
        actual = parameter.grad.norm().item()
        assert actual == pytest.approx(norm, rel=rtol, abs=1e-9), name
        squares += actual**2
    assert squares**0.5 == pytest.approx(expected["grad_norm_total"], rel=rtol)
    for name, values in run.stored.items():
        if name.startswith("grad."):
            key = name.removeprefix("grad.").replace("transformer.decoder.bbox_embed", "bbox_embed")
            actual = golden.stored(name, parameters[key].grad, 64)
            assert np.abs(actual - values).max() <= GRAD_RTOL[run.precision] * np.abs(values).max(), name
    assert {n for n, p in parameters.items() if p.grad is None} == {
        n for n, p in parameters.items() if not p.requires_grad
    }


def test_top_100(run: Run) -> None:
    """Scores of the chained model; labels and boxes wherever no score is as near as rounding could bridge."""
    sizes = torch.tensor(golden.golden(f"golden_{run.variant}")["postprocess_sizes_hw"])
    scores, labels, boxes = top_predictions(run.output.logits[-1], run.output.boxes[-1], sizes)
    tolerance = {"f64": 1e-9, "f32": 2e-4}[run.precision]
    for i in range(len(sizes)):
        wanted = run.stored[f"post.{i}.scores"]
        np.testing.assert_allclose(scores[i].detach(), wanted, atol=tolerance, rtol=0)
        gaps = np.abs(np.diff(wanted, prepend=np.inf, append=-np.inf))
        clear = (gaps[:-1] > 2 * tolerance) & (gaps[1:] > 2 * tolerance)
        clear[-1] = False  # its lower neighbour is not stored
        assert clear.sum() >= (90 if run.precision == "f64" else 5)
        np.testing.assert_array_equal(labels[i].numpy()[clear], run.stored[f"post.{i}.labels"][clear])
        scale = sizes[i].max().item() * TOLERANCE[run.precision]["boxes"]
        np.testing.assert_allclose(
            boxes[i].detach().numpy()[clear], run.stored[f"post.{i}.boxes"][clear], atol=scale
        )


@pytest.mark.parametrize("variant", ["nano", "tiny", "small", "base_win7_22k"])
def test_parameter_counts_and_names(variant: str) -> None:
    """91 classes: same tensors, shapes and count; what published models never train is frozen here."""
    name = f"vidt_swin_{variant}"
    keys = golden.golden(f"keys_{name}")
    with torch.device("meta"):
        model = golden.build(name, filled=False)
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    official = {
        k: v for k, v in keys["state_dict"].items() if not k.startswith("transformer.decoder.bbox_embed")
    }
    assert state == official
    assert sum(p.numel() for p in model.parameters()) == keys["parameters_unique"]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    parts = golden.golden("golden_parts")["optimizer_groups"]["models"]
    assert frozen == parts[f"swin_{variant}"]["never_gets_gradient"]


def test_parameter_count_vidt_plus() -> None:
    model = golden.build("vidtplus_swin_nano_det300", filled=False)
    keys = golden.golden("keys_vidtplus_swin_nano_det300")
    assert sum(p.numel() for p in model.parameters()) == keys["parameters_unique"]
    official = {
        k: v for k, v in keys["state_dict"].items() if not k.startswith("transformer.decoder.bbox_embed")
    }
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == official
