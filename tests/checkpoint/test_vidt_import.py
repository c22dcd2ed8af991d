"""Published ViDT and ViDT+ files in our models: same predictions, or an error that says what the file is."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from mokd_det.checkpoint import load_into, load_state
from mokd_det.checkpoint.official_vidt import has_class_rows
from mokd_det.errors import CheckpointError, ConfigError
from mokd_det.modeling.vidt import ViDTOutput
from tests.checkpoint.published import NANO, NANO_PLUS, detector, official_state, shapes
from tests.modeling import golden

# Category ids by name, as COCO's annotation files have them, with the place among the 80 sorted ids.
KNOWN_CATEGORIES = {1: 0, 2: 1, 11: 10, 13: 11, 25: 23, 27: 24, 44: 39, 65: 59, 67: 60, 70: 61, 90: 79}
NO_CATEGORY = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORIES = sorted(set(range(91)) - NO_CATEGORY)


def predictions(model: torch.nn.Module) -> ViDTOutput:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    images[1, :, 48:], mask[1, 48:] = 0, True
    with torch.no_grad():
        return model.forward_tensors(images, mask, label_tokens=True)


@pytest.fixture(scope="module")
def official_predictions() -> ViDTOutput:
    return predictions(golden.build(NANO))


def assert_same_logits(found: Tensor, wanted: Tensor) -> None:
    # One matrix product of 80 columns and one of 91 may round differently.
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_80_rows_predict_what_the_official_ones_do(vidt_file, official_predictions, caplog):
    model = detector()
    with caplog.at_level(logging.INFO):
        report = load_into(model, vidt_file)
    output = predictions(model)
    assert_same_logits(output.logits, official_predictions.logits[..., CATEGORIES])
    assert torch.equal(output.boxes, official_predictions.boxes)
    for key, value in official_state(NANO).items():
        if "decoder.bbox_embed" not in key:
            assert torch.equal(
                model.state_dict()[key], value[CATEGORIES] if has_class_rows(key) else value
            ), key
    assert len(CATEGORIES) == 80
    assert {i: CATEGORIES.index(i) for i in KNOWN_CATEGORIES} == KNOWN_CATEGORIES
    assert report.is_complete and set(report.loaded) == set(model.state_dict())
    assert set(report.rows_picked) == {
        f"class_embed.{i}.{end}" for i in range(7) for end in ("weight", "bias")
    }
    assert len(report.skipped) == 42
    assert all(key.startswith("transformer.decoder.bbox_embed.") for key in report.skipped)
    assert "ViDT-nano (91 classes" in caplog.text and "80 of 91 rows" in caplog.text


@pytest.mark.parametrize("keep_rows", ["all", "coco80"])
def test_a_model_of_91_classes_takes_all_rows(keep_rows, vidt_file, official_predictions):
    model = detector(num_classes=91)
    report = load_into(model, vidt_file, keep_rows=keep_rows)
    output = predictions(model)
    assert torch.equal(output.logits, official_predictions.logits)
    assert torch.equal(output.boxes, official_predictions.boxes)
    assert report.rows_picked == ()


def test_vidt_plus(vidt_plus_file):
    official = predictions(golden.build(NANO_PLUS))
    model = detector(plus=True)
    report = load_into(model, vidt_plus_file)
    output = predictions(model)
    assert_same_logits(output.logits, official.logits[..., CATEGORIES])
    assert torch.equal(output.iou_logits, official.iou_logits)
    for ours, theirs in zip(output.token_logits, official.token_logits):
        assert_same_logits(ours, theirs[..., [0, *CATEGORIES]])  # "some object" keeps its place
    assert report.is_complete
    assert {"transformer.token_embed.weight", "transformer.token_embed.bias"} <= set(report.rows_picked)
    assert "vector_embed.layers.0.weight" in report.skipped


def test_another_variant_is_named(vidt_file):
    model = detector("tiny")
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, vidt_file)
    assert (
        f"checkpoint '{vidt_file}' does not fit: this file looks like ViDT-nano (91 classes, 100 queries, "
        "6 decoder layers); the model is ViDT-tiny (80 classes, 100 queries, 6 decoder layers); "
    ) in str(caught.value)
    assert "transformer.level_embed" not in str(caught.value)
    assert "backbone.det_token [1, 100, 48] instead of [1, 100, 96]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("published", "model", "looks", "is_"),
    [
        ("vidt_swin_tiny", {}, "ViDT-tiny", "ViDT-nano"),
        ("vidt_swin_small", {"variant": "tiny"}, "ViDT-small", "ViDT-tiny"),
        ("vidt_swin_tiny", {"variant": "small"}, "ViDT-tiny", "ViDT-small"),
        ("vidt_swin_base_win7_22k", {"variant": "small"}, "ViDT-base", "ViDT-small"),
        (NANO_PLUS, {}, r"ViDT\+-nano \(91 classes, 300 queries", "ViDT-nano"),
        (NANO_PLUS, {"num_queries": 300}, r"ViDT\+-nano", "ViDT-nano"),
        (NANO, {"plus": True}, r"ViDT-nano \(91 classes, 100 queries", r"ViDT\+-nano"),
        (NANO, {"num_queries": 50}, "ViDT-nano .*100 queries", "ViDT-nano .*50 queries"),
    ],
)
@pytest.mark.parametrize("on_class_mismatch", ["error", "reinit"])
def test_every_misfit_says_what_the_file_looks_like(published, model, looks, is_, on_class_mismatch):
    with torch.device("meta"):
        network = detector(**model)
    # Without values the copies of the box heads cannot be compared.
    weights = {key: value for key, value in shapes(published).items() if "decoder.bbox_embed" not in key}
    with pytest.raises(CheckpointError, match=f"this file looks like {looks}.*the model is {is_}"):
        load_state(network, weights, "checkpoint 'x.pth'", on_class_mismatch=on_class_mismatch)


def test_other_numbers_of_classes_are_an_error_that_names_both(vidt_file):
    model = detector(num_classes=10)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"has 91 classes, the model 10 .*on_class_mismatch='reinit'"):
        load_into(model, vidt_file)
    assert_unchanged(model, before)
    with pytest.raises(CheckpointError, match=r"91 classes, the model 80 .*keep_rows='coco80' picks"):
        load_into(detector(), vidt_file, keep_rows="all")


@pytest.mark.parametrize(("num_classes", "keep_rows"), [(10, "coco80"), (80, "all")])
def test_class_heads_start_anew_where_asked(num_classes, keep_rows, vidt_file, caplog):
    model = detector(num_classes=num_classes)
    before = snapshot(model)
    report = load_into(model, vidt_file, keep_rows=keep_rows, on_class_mismatch="reinit")
    official = official_state(NANO)
    heads = [key for key in before if has_class_rows(key)]
    assert len(heads) == 14
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in heads else official[key]), key
    assert {name for name, _, _ in report.reinitialised} == set(heads)
    assert ("class_embed.3.weight", (91, 256), (num_classes, 256)) in report.reinitialised
    table = str(report)
    assert (
        f"re-initialised      7  class_embed.*.weight  [91, 256] in the file, [{num_classes}, 256] here"
        in table
    )
    assert f"loaded            {len(before) - 14}" in table
    assert "skipped             7  transformer.decoder.bbox_embed.*.layers.*.weight" not in table
    assert "skipped            21  transformer.decoder.bbox_embed.*.layers.*.weight" in table
    assert table in caplog.text
    assert not report.is_complete


def test_reinit_changes_nothing_where_the_classes_agree(vidt_file):
    report = load_into(detector(), vidt_file, on_class_mismatch="reinit")
    assert report.is_complete and report.reinitialised == ()


def test_rows_are_picked_from_published_files_only():
    state = detector(num_classes=91).state_dict()
    with pytest.raises(CheckpointError, match="has 91 classes, the model 80"):
        load_state(detector(), state, "checkpoint 'x.pth'")


def test_our_own_file_loads_exactly_and_misfits_are_named():
    source, target = detector(num_classes=10), detector(num_classes=10)
    report = load_state(target, source.state_dict(), "checkpoint 'x.pth'")
    assert_unchanged(target, source.state_dict())
    assert report.is_complete and not report.skipped and not report.rows_picked

    state = dict(source.state_dict())
    del state["tgt_proj.1.bias"]
    state["extra"] = torch.zeros(2)
    with pytest.raises(
        CheckpointError,
        match=r"1 missing from the file \(tgt_proj\.1\.bias\); 1 unknown to the model \(extra\)",
    ):
        load_state(target, state, "checkpoint 'x.pth'")
    report = load_state(
        target, state, "checkpoint 'x.pth'", allow_missing=["tgt_proj.*"], allow_unexpected=["ext*"]
    )
    assert (report.kept, report.skipped) == (("tgt_proj.1.bias",), ("extra",))


def test_copies_that_differ_are_damage(vidt_file):
    state = official_state(NANO)
    state["bbox_embed.2.layers.0.bias"] = state["bbox_embed.2.layers.0.bias"] + 1
    with pytest.raises(CheckpointError, match=r"'bbox_embed\.2\.layers\.0\.bias' and its copy .* differ"):
        load_state(detector(), state, "checkpoint 'x.pth'")


def test_a_file_with_the_decoders_copy_alone_is_complete():
    state = {key: value for key, value in official_state(NANO).items() if not key.startswith("bbox_embed.")}
    model = detector()
    assert load_state(model, state, "checkpoint 'x.pth'").is_complete
    assert torch.equal(
        model.bbox_embed[3].layers[0].weight, state["transformer.decoder.bbox_embed.3.layers.0.weight"]
    )


def test_files_of_other_models_are_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 3).state_dict()}, tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"no model known here \(its first tensors: weight, bias\)"):
        load_into(detector(), tmp_path / "linear.pth")
    with pytest.raises(
        CheckpointError, match=r"does not fit the model Linear: .*weight \[3, 2\] instead of \[3, 4\]"
    ):
        load_into(torch.nn.Linear(4, 3), tmp_path / "linear.pth")
    model = torch.nn.Linear(2, 3)
    assert load_into(model, tmp_path / "linear.pth").is_complete


@pytest.mark.parametrize("option", ["keep_rows", "on_class_mismatch"])
def test_unknown_choices_are_named(option):
    with pytest.raises(ConfigError, match=f"{option} is 'some'; it must be '"):
        load_state(torch.nn.Linear(1, 1), {}, "checkpoint 'x.pth'", **{option: "some"})
