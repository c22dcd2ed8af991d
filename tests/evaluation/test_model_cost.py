"""Parameters, multiply-adds, latency and memory of small modules, against numbers worked out by hand."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.flop_count import count_flops
from mokd_det.evaluation.latency import Latency, measure_latency
from mokd_det.evaluation.parameter_count import TABLE_1, count_parameters, size_remark
from mokd_det.evaluation.peak_memory import cpu_peak_memory, cuda_peak_memory
from mokd_det.layers import MultiScaleDeformableAttention, ReconfiguredAttention
from mokd_det.tools import analyze_model as analyze_model_tool
from tests.evaluation.memory_probe import Allocation, build_a_mistake, build_allocation

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

analyze = analyze_model_tool


# Multiply-adds


def test_linear_and_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.fc = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).relu().mean((2, 3)))

    found = count_flops(Net(), (torch.zeros(3, 4, 8, 10),))
    conv, linear = 3 * 6 * 4 * 5 * (4 // 2) * 9, 3 * 6 * 5
    assert found.by_part == {"conv": conv, "fc": linear} and found.total == conv + linear
    assert found.by_operator == {"conv": conv, "linear": linear}
    assert found.not_counted == {"aten::mean": 1}


def test_attention_of_unequal_lengths_and_widths() -> None:
    class Net(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value).sigmoid()

    query, key, value = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4)
    found = count_flops(Net(), (query, key, value))
    assert found.total == 2 * 3 * (5 * 7 * 8 + 5 * 7 * 4)
    assert found.not_counted == {"aten::sigmoid": 1}


def test_multi_head_attention_is_counted_without_its_fast_path() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.zeros(3, 5, 8)
    found = count_flops(attention, (tokens, tokens, tokens))
    projections, products = 3 * 5 * 8 * 8 * 4, 3 * 5 * 5 * 8 * 2
    assert found.by_operator["linear"] == projections
    assert found.total == projections + products


def test_window_attention() -> None:
    """Maps of 5x6 cells become 6x6 in windows of 3; DET tokens see each other."""
    attention = ReconfiguredAttention(8, 2, 3)
    found = count_flops(attention, (torch.zeros(2, 5, 6, 8), torch.zeros(2, 4, 8)))
    cells, padded, det = 2 * 5 * 6, 2 * 6 * 6, 2 * 4
    linear = (padded + det) * 8 * 24 + (cells + det) * 8 * 8
    windows, tokens = 2 * padded * 9 * 8, 2 * det * 4 * 8
    assert found.by_operator == {"linear": linear, "matmul": windows, "scaled_dot_product_attention": tokens}


def test_deformable_attention() -> None:
    shapes = [(4, 6), (2, 3)]
    attention = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3)
    query, value, reference = torch.zeros(2, 5, 8), torch.zeros(2, 30, 8), torch.rand(2, 5, 2, 4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, query: Tensor, reference: Tensor, value: Tensor) -> Tensor:
            return self.attention(query, reference, value, shapes)

    found = count_flops(Net(), (query, reference, value))
    samples = 2 * 2 * 2 * 5 * 3  # batch, heads, levels, queries, points
    assert found.by_operator["grid_sampler"] == samples * 4 * 4
    assert found.by_operator["linear"] == 2 * 30 * 8 * 8 + 2 * 5 * 8 * (24 + 12 + 8)
    assert found.not_counted["aten::softmax"] == 1


def test_detectron2_inputs_and_parts_that_are_not_called() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Conv2d(3, 2, 1)
            self.idle = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

        def forward(self, batch: list[dict]) -> list[dict[str, Tensor]]:
            return [{"sum": self.used(item["image"].float()[None])} for item in batch]

    batch = [{"image": torch.zeros(3, 4, 5, dtype=torch.uint8), "height": 4, "width": 5} for _ in range(2)]
    found = count_flops(Detector(), (batch,))
    assert found.total == 2 * 4 * 5 * 3 * 2 and found.not_called == ["idle"]
    assert torch.backends.mha.get_fastpath_enabled()


# Parameters


def test_shared_tensors_count_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(7))
            self.one = nn.Linear(3, 4)
            self.two = nn.Linear(3, 4)
            self.two.weight = self.one.weight
            self.frozen = nn.BatchNorm1d(5).requires_grad_(False)

    found = count_parameters(Net())
    assert found.by_part == {"": 7, "one": 16, "two": 4, "frozen": 10}
    assert found.total == 37 and found.trainable == 27
    assert found.megabytes == pytest.approx((37 * 4 + 5 * 4 * 2 + 8) / 1e6)


def test_remarks_on_printed_figures() -> None:
    nano, _, small, base = TABLE_1
    assert size_remark(15_728_677, nano) == "equal when rounded"
    assert size_remark(99_959_635, base) == "equal when rounded"
    assert (
        size_remark(60_465_061, small) == "60.47 rounds to 60; the printed figure is the next whole one above"
    )
    assert size_remark(59_000_000, small) == "differs: 59.00 rounds to 59"


# Latency


def test_latency_counts_the_passes_after_the_warm_up() -> None:
    class Net(nn.Module):
        calls = 0
        grad = True

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.grad = torch.is_grad_enabled()
            return x

    net = Net()
    found = measure_latency(net, (torch.zeros(1),), batch_size=4, device=CPU, warmup=3, repeats=5)
    assert net.calls == 8 and not net.grad
    assert len(found.seconds) == 5 and min(found.seconds) > 0 and found.fps == pytest.approx(4 / found.median)


def test_median_and_quantiles() -> None:
    found = Latency((0.1, 0.5, 0.2, 0.3, 0.4), batch_size=6)
    assert found.median == pytest.approx(0.3) and found.fps == pytest.approx(20)
    assert found.quantile(0.0) == pytest.approx(0.1) and found.quantile(1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_matrix_products(precision: str, dtype: torch.dtype) -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            assert out.dtype == dtype
            return out

    measure_latency(
        Net(4, 4), (torch.zeros(2, 4),), batch_size=2, device=CPU, precision=precision, warmup=0, repeats=1
    )


def test_what_cannot_be_measured() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("\"some_kernel\" not implemented for 'Half'")

    measure = functools.partial(measure_latency, Net(), (torch.zeros(1),), batch_size=1, device=CPU)
    with pytest.raises(
        ConfigError, match='Net cannot run in fp16 on this cpu: "some_kernel" not implemented'
    ):
        measure(precision="fp16")
    with pytest.raises(RuntimeError, match="not implemented for"):
        measure(precision="fp32")
    with pytest.raises(ConfigError, match="precision is 'int8'; it must be fp32, bf16, fp16"):
        measure(precision="int8")
    with pytest.raises(ConfigError, match="0 measured ones"):
        measure(repeats=0)


# Memory


def test_peak_memory_of_a_pass_on_the_cpu() -> None:
    found = cpu_peak_memory(functools.partial(build_allocation, 200))
    assert found.megabytes == pytest.approx(200, abs=12)
    assert found.method == "resident set of a fresh process"


@pytest.mark.slow
def test_a_mistake_in_the_measuring_process_arrives() -> None:
    with pytest.raises(DatasetError, match="no such file"):
        cpu_peak_memory(build_a_mistake)


# The tool


def test_table_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze.main(["--all-variants", "--output", str(tmp_path / "new" / "sizes.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["ViDT-nano", "15,708,888", "15,728,677", "16M", "equal", "when", "rounded"]
    assert lines[4].split()[:5] == ["ViDT-small", "60,445,272", "60,465,061", "61M", "60.47"]
    content = json.loads((tmp_path / "new" / "sizes.json").read_text())
    assert [row["parameters"]["91"] for row in content.values()] == [
        15_728_677,
        37_962_901,
        60_465_061,
        99_959_635,
    ]


def test_a_distillation_is_measured_by_its_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for config in ("student", "mokd"):
        output = tmp_path / f"{config}.json"
        arguments = [
            "--config-file",
            str(ROOT / "configs" / "quickstart" / f"{config}.py"),
            "--size",
            "64",
            "48",
        ]
        arguments += ["--batch-size", "2", "--measure", "parameters", "flops", "latency", "--repeats", "3"]
        assert analyze.main([*arguments, "--device", "cpu", "--output", str(output)]) == 0
        results.append(json.loads(output.read_text()))
    alone, distilled = results
    assert distilled["parameters"] == alone["parameters"] and distilled["flops"] == alone["flops"]
    assert alone["parameters"]["total"] == 553_420 and alone["flops"]["total"] > 1e7
    assert alone["setting"]["batch"] == "2 x 3 x 64 x 48"
    assert alone["latency"]["fps"] == pytest.approx(2 / alone["latency"]["median"])
    text = capsys.readouterr().out
    assert "multiply-adds per image" in text and "not counted" in text and "softmax×" in text


@pytest.mark.slow
def test_the_teacher_and_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-file", str(ROOT / "configs" / "quickstart" / "mokd.py"), "--size", "128", "128"]
    assert (
        analyze.main([*arguments, "--teacher", "--device", "cpu", "--measure", "parameters", "memory"]) == 0
    )
    text = capsys.readouterr().out
    assert "1,906,888" in text and "resident set of a fresh process" in text


def test_an_example_input_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        "import torch\n"
        "from detectron2.config import LazyCall as L\n"
        "def tokens(batch_size, height, width, device):\n"
        "    return (torch.zeros(batch_size, height * width, 4, device=device),)\n"
        "model = L(torch.nn.Linear)(in_features=4, out_features=3)\n"
        "example_input = L(tokens)()\n"
        "dataloader = dict(test=None)\n"
        "optimizer = lr_multiplier = objectives = balancer = dict()\n"
        "train = dict(max_iter=1)\n"
    )
    arguments = ["--config-file", str(config), "--size", "5", "6", "--batch-size", "2", "--measure", "flops"]
    assert analyze.main([*arguments, "--device", "cpu", "--output", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["flops"]["total"] == 2 * 30 * 4 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "missing.py"], "config file 'missing.py' does not exist"),
        (["--config-file", "CONFIG", "--teacher"], "the configuration has no teacher"),
        (["--config-file", "CONFIG", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (
            ["--config-file", "CONFIG", "--size", "0", "64"],
            r"--size is \[0, 64\]; both numbers must be 1 or more",
        ),
        (["--config-file", "CONFIG", "--set", "modell.topk=3"], "did you mean 'model'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "quickstart" / "student.py")
    arguments = [config if argument == "CONFIG" else argument for argument in arguments]
    assert analyze.main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


@pytest.mark.gpu
def test_peak_memory_and_latency_on_a_gpu() -> None:
    device = torch.device("cuda")
    found = cuda_peak_memory(Allocation("cuda"), (torch.tensor(100),), device)
    assert found.megabytes == pytest.approx(100, abs=1) and found.method.startswith("CUDA allocator")
    layer, inputs = nn.Linear(4, 4).to(device), (torch.zeros(2, 4, device=device),)
    for precision in ("fp32", "bf16", "fp16"):
        assert measure_latency(layer, inputs, batch_size=2, device=device, precision=precision).fps > 0
