"""Exported students find what the model finds: through tools/export.py, on images of digits, in sizes not traced."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from mokd_det.checkpoint import load_file, load_into
from mokd_det.config import load_config
from mokd_det.errors import ExportError
from mokd_det.export import (
    DESCRIPTION_FILE,
    OPSETS,
    Runner,
    inference_graph,
    measure_agreement,
    onnx_bytes,
    onnx_runner,
    pad_batch,
    torchscript_bytes,
    torchscript_runner,
)
from mokd_det.layers import MultiScaleDeformableAttention
from mokd_det.tools import export
from tests.export.small_models import MOKD, ROOT, STUDENT, digit_images, from_config, vidt_plus
from tests.forks import environment, run

# alone, two of the same size, padded and odd, smaller than any stride, five at once
SIZES = (
    [(64, 64)],
    [(64, 64), (64, 64)],
    [(61, 43), (37, 64), (64, 51)],
    [(20, 33)],
    [(64, 31), (9, 64), (33, 33), (64, 64), (50, 47)],
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def batches(data: Path) -> list[list[Tensor]]:
    return [digit_images(data, sizes) for sizes in SIZES]


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return from_config()


@pytest.fixture(scope="module")
def exported(student: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the student in every form."""
    folder = tmp_path_factory.mktemp("exported")
    # like a checkpoint of a distillation: the student, and more
    content = {
        "model": student.state_dict(),
        "method": {"heads.weight": torch.ones(3)},
        "trainer": {"iteration": 1},
    }
    torch.save(content, folder / "model_final.pth")
    names = [str(folder / f"student.{form}") for form in ("onnx", "torchscript", "safetensors")]
    common = ["--config-file", str(STUDENT), "--weights", str(folder / "model_final.pth")]
    assert export.main([*common, *names]) == 0
    gather = [str(folder / "gather.onnx"), "--deformable-attention", "gather", "--opset", "16", "--no-check"]
    assert export.main([*common, *gather]) == 0
    return folder


@pytest.mark.parametrize("name", ["student.onnx", "gather.onnx"])
def test_onnx_runtime_finds_what_the_model_finds(
    name: str, exported: Path, student: nn.Module, batches: list[list[Tensor]]
) -> None:
    run = onnx_runner((exported / name).read_bytes(), threads=1)
    agreement = measure_agreement(student, run, batches, 1e-4)
    assert agreement.images == 12 and agreement.within(1e-4), agreement


def test_torchscript_finds_what_the_model_finds(
    exported: Path, student: nn.Module, batches: list[list[Tensor]]
) -> None:
    run = torchscript_runner((exported / "student.torchscript").read_bytes())
    assert measure_agreement(student, run, batches, 1e-4).within(1e-4)


@pytest.mark.parametrize("name", ["student.onnx", "gather.onnx", "student.torchscript"])
def test_what_lies_outside_an_image_is_ignored(
    name: str, exported: Path, batches: list[list[Tensor]]
) -> None:
    content = (exported / name).read_bytes()
    run: Runner = torchscript_runner(content) if name.endswith("torchscript") else onnx_runner(content, 1)
    dark, bright = (run(*pad_batch(batches[2], filling=value)) for value in (0.0, 255.0))
    for one, other in zip(dark, bright):
        assert torch.equal(one, other)


def test_an_image_in_a_batch_is_found_like_one_alone(exported: Path, batches: list[list[Tensor]]) -> None:
    run = onnx_runner((exported / "student.onnx").read_bytes(), threads=1)
    images = [batches[1][0], batches[0][0]]
    together = run(*pad_batch(images))
    alone = run(*pad_batch(images[:1]))
    for one, other in zip(together, alone):
        torch.testing.assert_close(one[:1], other, atol=1e-4, rtol=1e-4)


def test_onnx_uses_standard_operators_and_says_what_it_takes_and_gives(exported: Path) -> None:
    for name, opset, sampling in (("student.onnx", 17, "grid_sample"), ("gather.onnx", 16, "gather")):
        model = onnx.load(exported / name)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        operators = {node.op_type for node in model.graph.node}
        assert all(node.domain == "" for node in model.graph.node)
        assert ("GridSample" in operators) is (sampling == "grid_sample")
        shapes = {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes["images"] == ["batch", 3, "height", "width"] and shapes["image_sizes"] == ["batch", 2]
        assert shapes["boxes"][0] == "batch" and list(shapes) == [
            "images",
            "image_sizes",
            "boxes",
            "scores",
            "labels",
        ]
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(about["class_names"]) == [str(digit) for digit in range(10)]
        assert "not normalised" in json.loads(about["inputs"])["images"]["meaning"]
        assert "x1, y1, x2, y2" in json.loads(about["outputs"])["boxes"]["meaning"]
        assert about["deformable_attention"] == sampling and about["parameters"] == "553420"
        assert about["resize"] == "none" and about["weights"] == "model_final.pth"


def test_a_distilled_student_exports_as_one_trained_alone(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The distillation's own configuration and checkpoint give the same graph, tensor by tensor."""
    arguments = ["--config-file", str(MOKD), "--weights", str(exported / "model_final.pth"), "--no-check"]
    assert export.main([*arguments, str(tmp_path / "student.onnx")]) == 0
    assert "553,420 parameters, 10 classes (0, 1, 2, ...)" in capsys.readouterr().out
    ours, theirs = (onnx.load(folder / "student.onnx").graph for folder in (tmp_path, exported))
    tensors = [{t.name: (list(t.dims), t.raw_data) for t in graph.initializer} for graph in (ours, theirs)]
    assert len(tensors[0]) > 100 and tensors[0] == tensors[1]
    assert [node.op_type for node in ours.node] == [node.op_type for node in theirs.node]


def test_the_torchscript_file_describes_itself(exported: Path) -> None:
    extra = {DESCRIPTION_FILE: ""}
    torch.jit.load(exported / "student.torchscript", _extra_files=extra)
    about = json.loads(extra[DESCRIPTION_FILE])
    assert about["model"] == "ViDT" and set(json.loads(about["outputs"])) == {"boxes", "scores", "labels"}


def test_safetensors_hold_the_student_alone_and_how_to_build_it(exported: Path, student: nn.Module) -> None:
    path = exported / "student.safetensors"
    weights = load_file(path)["model"]
    expected = student.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["format"] == "pt" and "inputs" not in about
    rebuilt = instantiate(OmegaConf.create(json.loads(about["model_config"])))
    assert load_into(rebuilt, path).is_complete


def test_train_net_evaluates_the_safetensors_file(exported: Path, data: Path, tmp_path: Path) -> None:
    digit_images(data, [(64, 64)])
    command = [
        *(sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(STUDENT), "--eval-only"),
        f"train.init_checkpoint={exported / 'student.safetensors'}",
        f"train.output_dir={tmp_path}",
    ]
    done = run(command, env=environment(DETECTRON2_DATASETS=data))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "AP" in json.loads((tmp_path / "results.json").read_text())["bbox"]


@pytest.mark.parametrize("kernel", ["grid_sample", pytest.param("gather", marks=pytest.mark.slow)])
def test_vidt_plus_exports_too(kernel: str, batches: list[list[Tensor]]) -> None:
    model = vidt_plus()
    content = onnx_bytes(inference_graph(model, kernel), {}, opset=OPSETS.stop - 1)
    agreement = measure_agreement(model, onnx_runner(content, threads=1), batches, 1e-4)
    assert agreement.within(1e-4), agreement


@pytest.mark.slow
def test_a_timm_backbone_exports_too(batches: list[list[Tensor]]) -> None:
    model = from_config(ROOT / "configs" / "examples" / "vidt_convnext.py")
    graph = inference_graph(model)
    # Its stages round down: below 32 pixels the last one has no cell, and ONNX Runtime refuses empty maps.
    large = [batch for batch in batches if min(min(image.shape[1:]) for image in batch) >= 32]
    assert len(large) > 1
    for runner in (onnx_runner(onnx_bytes(graph, {})), torchscript_runner(torchscript_bytes(graph, {}))):
        agreement = measure_agreement(model, runner, large, 1e-4)
        assert agreement.within(1e-4), agreement


def test_the_model_itself_is_not_changed(student: nn.Module) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    graph = inference_graph(student, "gather")
    kernels = {m.kernel for m in student.modules() if isinstance(m, MultiScaleDeformableAttention)}
    assert kernels == {"auto"} and student.criterion is not None
    assert graph.model is not student and graph.model.criterion is None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert any(parameter.requires_grad for parameter in student.parameters())


# Mistakes


def test_a_model_without_a_graph_is_refused_and_its_weights_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large as ssd\n"
        "from mokd_det.modeling import TorchvisionDetector\n"
        "model = L(TorchvisionDetector)(detector=L(ssd)(weights=None, weights_backbone=None, num_classes=5))\n"
        "dataloader = dict(test=None)\n"
        "optimizer = lr_multiplier = objectives = balancer = dict()\n"
        "train = dict(max_iter=1)\n"
    )
    model = instantiate(load_config(config, [], training=False).model)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    common = ["--config-file", str(config), "--weights", str(tmp_path / "weights.pth")]
    assert export.main([*common, str(tmp_path / "a.safetensors"), str(tmp_path / "a.onnx")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        "error: TorchvisionDetector cannot be exported as a graph: only ViDT and Hugging Face"
    )
    assert message.count("\n") == 1 and not (tmp_path / "a.safetensors").exists()
    assert export.main([*common, str(tmp_path / "a.safetensors")]) == 0
    assert len(load_file(tmp_path / "a.safetensors")["model"]) == len(model.state_dict())


def test_a_graph_that_finds_something_else_is_not_written(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config-file", str(STUDENT), "--weights", str(exported / "model_final.pth")]
    target = tmp_path / "student.torchscript"
    target.write_text("an earlier file")
    other_rounding = ["--deformable-attention", "gather", "--tolerance", "1e-12"]
    assert export.main([*common, str(target), *other_rounding]) == 2
    assert "is not written: its graph does not find what the model finds" in capsys.readouterr().err
    assert target.read_text() == "an earlier file" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student.pt"], r"'student\.pt' must end with \.onnx, \.torchscript or \.safetensors"),
        (["student.onnx", "--opset", "15"], "opset 15 cannot be written; choose one of 16 to 20"),
        (["student.onnx", "--weights", "missing.pth"], "'missing.pth' does not exist"),
        (["student.onnx", "--config-file", "missing.py"], "config file 'missing.py' does not exist"),
        (["file/student.onnx"], "the folder of 'file/student.onnx' cannot be made"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    common = ["--config-file", str(STUDENT), "--weights", str(exported / "model_final.pth")]
    assert export.main([*common, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f"needs the package {package}: pip install {package}"):
        if package == "onnx":
            onnx_bytes(inference_graph(student), {})
        else:
            onnx_runner(b"")


def test_an_unknown_kernel(student: nn.Module) -> None:
    with pytest.raises(
        ExportError, match="unknown deformable attention 'cuda'; there are gather, grid_sample"
    ):
        inference_graph(student, "cuda")
