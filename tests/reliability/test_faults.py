"""What machines do to trainings, through the tool itself: kills, full disks, lost processes, replaced files."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mokd_det.checkpoint import load_file
from mokd_det.engine.launch import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR
from mokd_det.engine.machine_error import is_lost_worker
from mokd_det.engine.termination import FIRST_INTERRUPT
from tests.engine.helpers import differences
from tests.engine.test_train_net import TOOL, metrics
from tests.forks import Program, environment
from tests.reliability.toys import PixelSum

HERE = Path(__file__).parent
CONFIG = HERE / "fault_config.py"


class Run:
    """One output directory, in which the tool is started again and again."""

    def __init__(self, directory: Path, *arguments: str, config: Path = CONFIG) -> None:
        self.directory, self.arguments, self.config = directory, arguments, config
        self.log = directory.with_suffix(".log")

    def start(self, *arguments: str) -> Program:
        command = [sys.executable, TOOL, "--config-file", self.config, f"train.output_dir={self.directory}"]
        with open(self.log, "w") as log:
            return Program(
                [*map(str, command), *self.arguments, *arguments],
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def run(self, *arguments: str) -> int:
        return self.start(*arguments).wait(120)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    def wait_for(self, name: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not (self.directory / name).exists():
            assert time.monotonic() < deadline, f"{name} did not appear\n{self.said[-2000:]}"
            time.sleep(0.005)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run and its seconds."""
    run = Run(tmp_path_factory.mktemp("faults") / "whole")
    start = time.monotonic()
    assert run.run() == 0, run.said
    return run.directory, time.monotonic() - start


def at_a_random_time(generator: random.Random, seconds: float) -> Callable[[Run], None]:
    delay = generator.uniform(0.0, seconds)
    return lambda run: time.sleep(delay)


def while_writing(generator: random.Random, seconds: float) -> Callable[[Run], None]:
    """Until a half-written file has been seen a chosen number of times: it is there at that moment."""
    wanted = generator.randrange(1, 13)  # nine checkpoints are written; their tags are seen now and then

    def wait(run: Run) -> None:
        times, before = 0, False
        deadline = time.monotonic() + 10 * seconds + 10
        while times < wanted and time.monotonic() < deadline:
            names = os.listdir(run.directory) if run.directory.exists() else []
            if "student_final.pth" in names:
                return
            present = any(".partial-" in name for name in names)
            times += present and not before
            before = present

    return wait


def check_kills(whole: tuple[Path, float], tmp_path: Path, kills: int, seed: int) -> None:
    reference, seconds = whole
    wanted = load_file(reference / "model_final.pth")
    generator = random.Random(seed)
    half_written = running = 0
    for number in range(kills):
        moment = (while_writing if number % 2 else at_a_random_time)(generator, seconds)
        run = Run(tmp_path / f"run{number}")
        process = run.start()
        moment(run)
        os.kill(process.pid, signal.SIGKILL)
        running += process.wait(120) == -signal.SIGKILL
        half_written += (
            any(".partial-" in name for name in os.listdir(run.directory)) if run.directory.exists() else 0
        )
        assert run.run("--resume") == 0, f"kill {number} of seed {seed}:\n{run.said[-3000:]}"
        found = load_file(run.directory / "model_final.pth")
        assert differences(wanted, found) == [], f"kill {number} of seed {seed}"
        assert "Passing over a checkpoint" not in run.said
        assert not any(".partial-" in name for name in os.listdir(run.directory))
        assert [line["iteration"] for line in metrics(run.directory)] == list(range(8))
    assert running >= kills // 2, "most runs had ended before they could be killed"
    assert half_written >= kills // 10, "no kill met a checkpoint that was being written"


def test_killed_at_random_moments(whole, tmp_path):
    check_kills(whole, tmp_path, kills=6, seed=int.from_bytes(os.urandom(3), "big"))


@pytest.mark.slow
def test_killed_at_50_random_moments(whole, tmp_path):
    check_kills(whole, tmp_path, kills=50, seed=int.from_bytes(os.urandom(3), "big"))


def test_killed_twice_before_and_after_a_resume(whole, tmp_path):
    run = Run(tmp_path / "run")
    for name in ("model_0000002.pth", "model_0000005.pth"):
        process = run.start("--resume")
        run.wait_for(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(120)
    assert run.run("--resume") == 0, run.said
    assert (
        differences(load_file(whole[0] / "model_final.pth"), load_file(run.directory / "model_final.pth"))
        == []
    )


@pytest.mark.parametrize("left", ["nothing", "an older one"])
def test_killed_between_the_last_periodic_and_the_final_checkpoint(whole, tmp_path, left):
    """There is no step left that could write the final one."""
    run = Run(tmp_path / "run")
    shutil.copytree(whole[0], run.directory)
    (run.directory / "last_checkpoint").write_text("model_0000007.pth")
    (run.directory / "model_final.pth").unlink()
    if left != "nothing":  # of a training that was shorter at first
        shutil.copy(run.directory / "model_0000003.pth", run.directory / "model_final.pth")
    assert run.run("--resume") == 0, run.said
    wanted = load_file(whole[0] / "model_final.pth")
    assert differences(wanted, load_file(run.directory / "model_final.pth")) == []
    assert (run.directory / "last_checkpoint").read_text() == "model_final.pth"


def test_sigterm_saves_and_says_so(whole, tmp_path):
    run = Run(
        tmp_path / "run",
        "train.checkpointer.period=1000",
        f"dataloader.train.signal_file={tmp_path}/go",
    )
    process = run.start("dataloader.train.wait_at=3")
    run.wait_for("../go.waiting")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    (tmp_path / "go").touch()
    assert process.wait(60) == EXIT_STOPPED == 143
    # Asked while the fourth batch was loaded: that step was finished, saved, and none after it begun.
    assert (run.directory / "last_checkpoint").read_text() == "model_0000003.pth"
    assert "SIGTERM: stopped after iteration 3; --resume continues" in run.said
    assert "Traceback" not in run.said
    assert run.run("--resume") == 0, run.said
    assert "Resuming at iteration 4" in run.said
    found, wanted = (load_file(path / "model_final.pth") for path in (run.directory, whole[0]))
    assert differences(wanted, found) == []
    assert [line["iteration"] for line in metrics(run.directory)] == list(range(8))


def test_sigterm_in_the_last_step_lets_the_run_finish(tmp_path):
    run = Run(tmp_path / "run", "train.max_iter=2", f"dataloader.train.signal_file={tmp_path}/go")
    process = run.start("dataloader.train.wait_at=1")
    run.wait_for("../go.waiting")
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    (tmp_path / "go").touch()
    assert process.wait(120) == 0
    assert (run.directory / "student_final.pth").exists()


@pytest.mark.parametrize("to_all", [True, False], ids=["to all processes", "to one rank"])
def test_sigterm_under_several_processes(tmp_path, to_all):
    run = Run(
        tmp_path / "run",
        "train.checkpointer.period=1000",
        f"dataloader.train.signal_file={tmp_path}/go",
    )
    process = run.start("--num-gpus", "2", "dataloader.train.wait_at=2")
    run.wait_for("../go.waiting", timeout=300)
    if to_all:
        # As systems do that end a whole group: the launcher hands it on besides.
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(child_ranks(process.pid)[-1], signal.SIGTERM)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    assert process.wait(60) == EXIT_STOPPED, run.said
    stopped = [line for line in run.said.splitlines() if line.startswith("SIGTERM: stopped after iteration")]
    assert len(stopped) == 1, run.said
    iteration = int(stopped[0].split("iteration ")[1].split(";")[0])
    assert iteration in (2, 3)
    content = load_file(run.directory / f"model_{iteration:07d}.pth")
    assert content["iteration"] == iteration and content["trainer"]["run"]["world_size"] == 2
    assert not run.errors and "Traceback" not in run.said


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_finishes_the_step_saves_and_says_so(tmp_path, ranks):
    run = Run(
        tmp_path / "run",
        "train.checkpointer.period=1000",
        f"dataloader.train.signal_file={tmp_path}/go",
    )
    process = run.start("--num-gpus", str(ranks), "dataloader.train.wait_at=2")
    run.wait_for("../go.waiting", timeout=300)
    # As a terminal does: to all processes.
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    (tmp_path / "go").touch()
    assert process.wait(60) == EXIT_INTERRUPTED == 130, run.said
    said = [line for line in run.said.splitlines() if "Ctrl-C" in line]
    assert said[0] == "Ctrl-C: finishing this step, then saving; once more ends at once" and len(said) == 2
    stopped = re.fullmatch(r"Ctrl-C: stopped after iteration (\d+); --resume continues", said[1])
    assert stopped, said
    assert (run.directory / "last_checkpoint").read_text() == f"model_{int(stopped[1]):07d}.pth"
    assert "Traceback" not in run.said and "KeyboardInterrupt" not in run.said and not run.errors
    assert run.run("--num-gpus", str(ranks), "--resume") == 0, run.said
    assert f"Resuming at iteration {int(stopped[1]) + 1}" in run.said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_ctrl_c_ends_at_once(tmp_path, ranks):
    """The loader waits for ever, so the step that the first one waits for has no end."""
    run = Run(tmp_path / "run", f"dataloader.train.signal_file={tmp_path}/never")
    process = run.start("--num-gpus", str(ranks), "dataloader.train.wait_at=2")
    run.wait_for("../never.waiting", timeout=300)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    children = child_ranks(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(15) == EXIT_INTERRUPTED, run.said
    lines = run.said.splitlines()
    assert lines.count(FIRST_INTERRUPT) == 1 and lines[-1] == "interrupted", run.said
    assert "Traceback" not in run.said
    assert len(children) == (ranks if ranks > 1 else 0)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_before_the_first_step_is_one_word(tmp_path, ranks):
    run = Run(tmp_path / "run")
    process = run.start("--num-gpus", str(ranks))
    run.wait_for("log.txt", timeout=300)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) in (EXIT_INTERRUPTED, 0), run.said
    assert "Traceback" not in run.said


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_trainings_do_not_share_a_directory(tmp_path, ranks):
    run = Run(tmp_path / "run", f"dataloader.train.signal_file={tmp_path}/go")
    process = run.start("dataloader.train.wait_at=2")
    run.wait_for("../go.waiting", timeout=300)
    before = {item.name: item.read_bytes() for item in run.directory.iterdir() if item.is_file()}
    other = Run(tmp_path / "run")
    other.log = tmp_path / "other.log"
    assert other.start("--num-gpus", str(ranks)).wait(300) == EXIT_USER_ERROR, other.said
    (error,) = other.errors
    assert f"train.output_dir '{run.directory}' is in use by process {process.pid} on " in error
    assert "Traceback" not in other.said
    assert {item.name: item.read_bytes() for item in run.directory.iterdir() if item.is_file()} == before
    # The lock of a process that is gone blocks nobody.
    os.kill(process.pid, signal.SIGKILL)
    process.wait(120)
    (tmp_path / "go").touch()
    assert other.run("--resume") == 0, other.said
    assert not (run.directory / ".lock").exists()


def child_ranks(pid: int) -> list[int]:
    """The ranks' process ids, in order."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[1])
        # It has ended meanwhile.
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(entry.name))
    return sorted(found)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(whole, tmp_path):
    run = Run(tmp_path / "run", f"dataloader.train.signal_file={tmp_path}/go")
    process = run.start("dataloader.train.wait_at=3")
    run.wait_for("../go.waiting")
    # From now on the process can write no file beyond this size: a checkpoint cannot be completed.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    (tmp_path / "go").touch()
    assert process.wait(120) == EXIT_USER_ERROR
    assert run.errors == [
        f"error: checkpoint '{run.directory}/model_0000003.pth' could not be written ([Errno 27] File too large); "
        "earlier checkpoints are untouched"
    ]
    assert (run.directory / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not any(".partial-" in name for name in os.listdir(run.directory))
    assert run.run("--resume") == 0, run.said
    assert (
        differences(load_file(whole[0] / "model_final.pth"), load_file(run.directory / "model_final.pth"))
        == []
    )


def test_no_space_for_the_curves_is_named_too(tmp_path):
    run = Run(
        tmp_path / "run",
        f"dataloader.train.signal_file={tmp_path}/go",
        "train.checkpointer.period=100",
    )
    process = run.start("dataloader.train.wait_at=3")
    run.wait_for("../go.waiting")
    with open(run.directory / "metrics.json", "a") as file:
        file.write("\n" * 400_000)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    (tmp_path / "go").touch()
    assert process.wait(120) == EXIT_USER_ERROR, run.said
    assert len(run.errors) == 1
    assert run.errors[0].startswith(
        "error: no space to write at iteration 3: [Errno 27] File too large. Checkpoints"
    )
    assert "Traceback" not in run.said


def test_a_data_loading_process_that_dies_is_named(tmp_path):
    run = Run(tmp_path / "run", config=HERE / "worker_config.py")
    start = time.monotonic()
    assert run.run() == EXIT_USER_ERROR, run.said
    assert time.monotonic() - start < 60
    assert len(run.errors) == 1
    assert "a process that loads data is gone at iteration" in run.errors[0]
    assert "lower num_workers" in run.errors[0]
    assert "Traceback" not in run.said


def test_a_rank_that_dies_ends_all_in_bounded_time(tmp_path):
    run = Run(tmp_path / "run", "--num-gpus", "2")
    process = run.start("dataloader.train.crash_at=[1,2]")
    run.wait_for("model_0000000.pth", timeout=300)
    start = time.monotonic()
    assert process.wait(120) == 1
    assert time.monotonic() - start < 30
    assert run.errors == ["error: the process of rank 1 was ended with status 9; all others were ended too"]
    assert not child_ranks(process.pid)


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save({"model": PixelSum().state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def test_a_teacher_replaced_during_a_run(tmp_path, teacher_file):
    """The run keeps the teacher it has read; a resume with another one is refused."""
    arguments = (f"model.teacher_checkpoint={teacher_file}", f"dataloader.train.signal_file={tmp_path}/go")
    config = HERE / "teacher_config.py"
    undisturbed = Run(tmp_path / "undisturbed", *arguments, config=config)
    assert undisturbed.run() == 0, undisturbed.said
    good = teacher_file.read_bytes()

    run = Run(tmp_path / "run", *arguments, config=config)
    process = run.start("dataloader.train.wait_at=4")
    run.wait_for("../go.waiting")
    torch.manual_seed(2)
    torch.save({"model": PixelSum().state_dict()}, teacher_file)
    (tmp_path / "go").touch()
    assert process.wait(120) == 0, run.said
    found, wanted = (load_file(path.directory / "model_final.pth") for path in (run, undisturbed))
    assert differences(wanted, found) == []

    files = {path.name: path.read_bytes() for path in run.directory.glob("*.pth")}
    assert run.run("--resume", "train.max_iter=9") == EXIT_USER_ERROR
    assert len(run.errors) == 1
    assert "the teacher's weights are not those this run began with: was its file replaced?" in run.errors[0]
    assert {path.name: path.read_bytes() for path in run.directory.glob("*.pth")} == files
    teacher_file.write_bytes(good[: len(good) // 2])
    assert run.run("--resume", "train.max_iter=9") == EXIT_USER_ERROR
    assert run.errors[0].startswith(f"error: teacher checkpoint '{teacher_file}' cannot be read: broken")
    teacher_file.write_bytes(good)
    assert run.run("--resume", "train.max_iter=9") == 0, run.said


def test_ranks_with_different_teachers_do_not_start(monkeypatch):
    from detectron2.utils import comm

    from mokd_det.errors import CheckpointError
    from tests.engine.helpers import make_trainer
    from tests.reliability.test_non_finite import distiller
    from tests.reliability.toys import Blind

    monkeypatch.setattr(comm, "all_gather", lambda own: [own, "0" * 32])
    with pytest.raises(
        CheckpointError, match=r"the ranks have different teachers \(rank 0 [0-9a-f]{12}, rank 1 0000"
    ):
        make_trainer(model=distiller(Blind()), patterns={"all": ["loss_*"]})


def test_a_lost_data_process_is_known_behind_the_failure_it_causes():
    try:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        finally:
            raise RuntimeError("unexpected pos 902976 vs 902864")
    except RuntimeError as error:
        assert is_lost_worker(error)
    assert not is_lost_worker(RuntimeError("unexpected pos 902976 vs 902864"))


def test_what_a_kill_left_at_the_very_end_is_swept_though_nothing_more_is_saved(tmp_path):
    run = Run(tmp_path / "run")
    assert run.run() == 0, run.said
    for name in (".student_final.pth.partial-1", "best/.model.pth.partial-1"):
        (run.directory / name).parent.mkdir(exist_ok=True)
        (run.directory / name).write_bytes(b"half")
    assert run.run("--resume") == 0, run.said
    assert not list(run.directory.rglob(".*.partial-*"))
