"""Nothing is let in: no code from files, no network, no way out of the image folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mokd_det.checkpoint import load_file
from mokd_det.errors import CheckpointError, DatasetError
from mokd_det.tools import convert_checkpoint as convert_checkpoint_tool
from tests.data_room.conftest import coco_files  # noqa: F401
from tests.engine.test_train_net import CONFIG, ROOT, run_here

SOURCES = [
    path
    for folder in ("mokd_det", "tools", "datasets", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# What runs text or bytes as a program.
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "dill.load",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "torch.hub.load",
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text())
    return [(dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def constant(call: ast.Call, name: str) -> object:
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_no_source_runs_what_it_reads():
    assert len(SOURCES) > 100
    found = []
    for path in SOURCES:
        for name, call in calls(path):
            where = f"{path.relative_to(ROOT)}:{call.lineno} {name}"
            if name in RUNS_CODE or constant(call, "shell") is True:
                found.append(where)
            if name in ("np.load", "numpy.load") and constant(call, "allow_pickle") is not False:
                found.append(where)
            if name == "torch.load" and constant(call, "weights_only") is not True:
                found.append(where)
    # The one way around, which is only taken when the user says so (load_file(trusted=True)).
    assert [where.split(":")[0] for where in found] == ["mokd_det/checkpoint/reading.py"], found


def test_nothing_trusts_a_file_of_its_own_accord():
    trusting = [
        (path.name, ast.unparse(keyword.value))
        for path in SOURCES
        for name, call in calls(path)
        for keyword in call.keywords
        if keyword.arg == "trusted"
    ]
    assert trusting == [("convert_checkpoint.py", "args.trust_pickle")]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_runs_code_is_refused_unless_it_is_trusted(tmp_path, capsys):
    tool = convert_checkpoint_tool
    weights = {"layer.weight": torch.arange(3.0)}
    source, copy, proof = tmp_path / "old.pth", tmp_path / "copy.pth", tmp_path / "proof"
    torch.save({"model": weights, "args": Trap(proof)}, source)
    assert tool.main([str(source), str(copy)]) == 2
    assert "which could run code when loaded, so it is refused" in capsys.readouterr().err
    assert not proof.exists() and not copy.exists()
    # Were it not refused, it would run: this is what the flag allows.
    assert tool.main([str(source), str(copy), "--trust-pickle"]) == 0
    assert proof.exists()
    assert torch.equal(load_file(copy)["model"]["layer.weight"], weights["layer.weight"])


@pytest.mark.parametrize("key", ["train.init_checkpoint", "model.teacher_checkpoint"])
def test_no_entry_runs_a_trap(key, tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "args": Trap(tmp_path / "proof")}, tmp_path / "trap.pth")
    config = CONFIG if key.startswith("train") else ROOT / "tests" / "reliability" / "teacher_config.py"
    arguments = ("--config-file", str(config), f"{key}={tmp_path / 'trap.pth'}")
    with pytest.raises(CheckpointError, match="could run code when loaded"):
        run_here(tmp_path / "out", *arguments)
    assert not (tmp_path / "proof").exists()
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_trap_as_the_newest_checkpoint_is_passed_over(tmp_path, caplog):
    run_here(tmp_path, "train.max_iter=2", "train.eval_period=0")
    (tmp_path / "model_9999999.pth").write_bytes(pickle.dumps(Trap(tmp_path / "proof")))
    (tmp_path / "last_checkpoint").write_text("model_9999999.pth")
    run_here(tmp_path, "--resume", "train.max_iter=3", "train.eval_period=0")
    assert not (tmp_path / "proof").exists()
    assert "Passing over a checkpoint" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/hostname",
        "a/../../secret.png",
        "images/../../secret.png",
        "~/../../etc/hosts/..",
    ],
)
def test_paths_in_annotations_stay_in_the_image_folder(coco_files, name):  # noqa: F811
    files = coco_files(lambda content: content["images"][0].update(file_name=name))
    Image.new("RGB", (40, 30)).save(files.image_root.parent / "secret.png")
    with pytest.raises(DatasetError, match=r"which leads out of the image folder|does not exist"):
        files.load()


def test_a_tag_cannot_name_a_file_elsewhere(tmp_path):
    """Whoever can write ``last_checkpoint`` may choose among checkpoints, and what is chosen is read without code."""
    torch.save({"model": {}, "args": Trap(tmp_path / "proof")}, tmp_path / "elsewhere.pth")
    run = tmp_path / "run"
    run_here(run, "train.max_iter=2", "train.eval_period=0")
    (run / "last_checkpoint").write_text("../elsewhere.pth")
    run_here(run, "--resume", "train.max_iter=3", "train.eval_period=0")
    assert not (tmp_path / "proof").exists()
    assert load_file(run / "model_final.pth")["iteration"] == 2


def test_names_are_escaped_in_html_reports():
    from mokd_det.report.page import page_templates

    name = "<script>alert('x')</script>\"&"
    written = page_templates().get_template("parts.html").module.table([name], [[name]])
    assert "<script" not in written and written.count("&lt;script&gt;") == 2


BLOCKED = """
import runpy, socket, sys

def watch(event, arguments):
    # Processes on one machine talk through AF_UNIX sockets; those lead nowhere.
    if event in ("socket.connect", "socket.sendto", "socket.bind") and arguments[0].family != socket.AF_UNIX:
        leave(event, arguments[1:])
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        leave(event, arguments)

def leave(*what):
    import os
    sys.stderr.write(f"NETWORK {what}\\n")
    sys.stderr.flush()
    os._exit(97)

sys.addaudithook(watch)
for command in %r:
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            sys.exit(leaving.code)
if %r:
    socket.create_connection(("127.0.0.1", 9))
"""


@pytest.mark.parametrize("then_connect", [False, True], ids=["tools", "control"])
def test_no_network_in_training_evaluation_and_import(tmp_path, then_connect):
    """The control shows that the watch would have seen it."""
    train = [str(ROOT / "tools" / "train_net.py"), "--config-file", str(CONFIG)]
    student = tmp_path / "train" / "student_final.pth"
    commands = [
        [*train, f"train.output_dir={tmp_path / 'train'}", "train.max_iter=2"],
        [*train, "--eval-only", f"train.output_dir={tmp_path / 'eval'}", f"train.init_checkpoint={student}"],
        [str(ROOT / "tools" / "convert_checkpoint.py"), str(student), str(tmp_path / "copy.pth")],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED % ([] if then_connect else commands, then_connect)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == (97 if then_connect else 0), done.stderr[-2000:]
    if not then_connect:
        assert json.loads((tmp_path / "eval" / "results.json").read_text())
        assert (tmp_path / "copy.pth").exists()
