"""Commands answer --help and refuse wrong arguments before anything is imported that takes seconds."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mokd_det.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "detectron2", "timm", "matplotlib", "numpy", "cv2", "omegaconf", "PIL")
REFUSED = [
    ("train", "--config-file none.py", "config file 'none.py' does not exist\n"),
    ("submit", "-- --config-file none.py", "config file 'none.py' does not exist\n"),
    ("submit", "--slurm a -- --config-file README.md", "config file 'README.md' must be a .py or .yaml file"),
    ("analyze", "--config-file none.py", "config file 'none.py' does not exist"),
    (
        "analyze",
        "--config-file COCO/vidt_nanoo.py",
        "config file 'COCO/vidt_nanoo.py' does not exist; did you mean ",
    ),
    (
        "compare",
        "--config COCO/mokd_vidt_nano.py --methods none mokd --output a --teacher-config coco/vidt_smal.py",
        "config file 'coco/vidt_smal.py' does not exist; did you mean 'COCO/vidt_small.py', which comes with mokd_det?",
    ),
    ("frontier", "a --dataset b --output c.pdf", "--output c.pdf: the picture is a PNG file"),
    ("fetch", "bccd cards --archive a.tar.gz", "--archive is the archive of one NAME"),
    ("check", "a.json b --samples 0", "--samples is 0; it must be 1 or more"),
    ("convert", "a.pth b.safetensors", "the name 'b.safetensors' must not end with"),
    ("demo", "a.png --run nowhere --output b", "--run nowhere: no config.yaml there"),
    ("dynamics", "a --output b.pdf", "--output b.pdf: the picture is a PNG file"),
    ("export", "a.tflite --config-file b --weights c", "OUTPUT 'a.tflite' must end with"),
    ("report", "a --images 0", "--images 0 --pictures 6: must be at least 1"),
    ("tide", "a.json", "result files need their truth"),
    ("attention", "a.png --ids 3 --model none.py b --output c", "config file 'none.py' does not exist"),
]
PROGRAM = """
import contextlib, io, json, sys
from mokd_det.__main__ import main
answers = {{}}
for name, arguments in {cases!r}:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main([name, *arguments])
        except SystemExit as ended:
            status = ended.code
    answers[f"{{name}} {{' '.join(arguments)}}"] = (status, output.getvalue(), errors.getvalue())
print(json.dumps(dict(answers=answers, heavy=[name for name in {heavy!r} if name in sys.modules])))
"""


def test_help_and_refusals_import_nothing_heavy() -> None:
    cases = [(name, [argument]) for name in COMMANDS for argument in ("--help", "--no-such-option")]
    cases += [(name, arguments.split()) for name, arguments, _ in REFUSED]
    program = PROGRAM.format(cases=cases, heavy=HEAVY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["answers"]) == len(cases)
    said = {f"{name} {arguments}": text for name, arguments, text in REFUSED}
    for case, (status, output, errors) in found["answers"].items():
        if case.endswith("--help"):
            assert status == 0 and "usage: " in output and not errors
        else:
            assert status == 2 and not output and f"error: {said.get(case, '')}" in errors, (case, errors)
    assert found["heavy"] == []


def test_every_file_in_tools_and_datasets_is_a_command() -> None:
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]
    assert {path.stem for path in files} == set(COMMANDS.values())


def test_choices_on_the_command_line_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    """The parsers name them themselves: the modules that define them take seconds to import."""
    from mokd_det.checkpoint import KEEP_ROWS
    from mokd_det.data import IMAGE_CHECKS
    from mokd_det.data.digits import DEFAULT_COUNTS, KINDS
    from mokd_det.data.frames import VIDEO_CODECS
    from mokd_det.data.photographs import PHOTOGRAPHS
    from mokd_det.evaluation.latency import PRECISIONS
    from mokd_det.experiments.compare_methods import METRICS
    from mokd_det.experiments.quickstart_tasks import TASKS
    from mokd_det.export import DEFAULT_OPSET, OPSETS
    from mokd_det.tools.parsers.make_digits import COUNTS

    def help_of(command: str) -> str:
        with pytest.raises(SystemExit):
            importlib.import_module(f"mokd_det.tools.parsers.{command}").parse(["--help"])
        return " ".join(capsys.readouterr().out.split())

    def choices(command: str, option: str) -> list[str]:
        return help_of(command).split(f"{option} {{", 1)[1].split("}", 1)[0].split(",")

    assert choices("convert_checkpoint", "--keep-rows") == list(KEEP_ROWS)
    assert choices("check_dataset", "--images") == list(IMAGE_CHECKS)
    assert choices("demo", "--video") == list(VIDEO_CODECS)
    assert choices("analyze_model", "--precision") == list(PRECISIONS)
    assert choices("compare_methods", "--metric") == list(METRICS)
    assert choices("quickstart", "--task") == list(TASKS)
    assert all(kind in help_of("make_digits") for kind in KINDS) and COUNTS == DEFAULT_COUNTS
    assert all(name in help_of("fetch") for name in PHOTOGRAPHS)
    assert f"of ONNX, {OPSETS.start} to {OPSETS.stop - 1} ({DEFAULT_OPSET})" in help_of("export")


def test_a_command_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a locked folder names its holder."""
    monkeypatch.setattr(sys, "argv", ["/x/mokd_det/__main__.py", "check", "a b"])
    monkeypatch.setattr("mokd_det.__main__.start", lambda module, arguments: 0)
    assert main(["check", "a b"]) == 0 and sys.argv == ["python -m mokd_det check", "a b"]
