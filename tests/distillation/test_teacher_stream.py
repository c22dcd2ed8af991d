"""The teacher on a CUDA stream of its own: the same numbers, in the right order."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mokd_det.distillation import Distiller, MaskedKD, side_stream
from mokd_det.distillation.side_stream import SideStream, SideWork
from mokd_det.engine.time_split import TimeSplit
from mokd_det.errors import ConfigError
from tests.distillation.cached_views import OrderedLoader, distiller, trainer
from tests.engine.helpers import differences, run_one_step, snapshot


def test_on_a_cpu_it_changes_nothing_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    plain, streamed = trainer(distiller()), trainer(distiller(teacher_stream=True))
    with caplog.at_level(logging.INFO, side_stream.__name__):
        for run in (plain, streamed):
            run.train(0, 3)
    assert differences(snapshot(plain), snapshot(streamed)) == []
    said = [record.getMessage() for record in caplog.records if record.name == side_stream.__name__]
    assert said == ["teacher_stream has no effect on cpu: there are no streams"]


def test_a_teacher_that_waits_for_the_student_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"teacher_stream=True .* with MaskedKD it waits for the student"):
        distiller(method=MaskedKD(), teacher_stream=True)


class FakeCuda:
    """Notes what CUDA would be asked to do, and on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current: Any = None
        cuda, log = self, self.log

        class Stream:
            def __init__(self, device: Any = None, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Any) -> None:
                log.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event: Any) -> None:
                log.append(f"{self.name} waits for the event on {event.where}")

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.timing = enable_timing

            def record(self) -> None:
                self.where = cuda.current.name
                log.append(f"event on {self.where}")

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Any) -> float:
                return 2000.0 if self.where == other.where == "side" else 9000.0

        @contextmanager
        def stream(chosen: Any) -> Any:
            before, cuda.current = cuda.current, chosen
            yield
            cuda.current = before

        self.current = Stream(name="main")
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: cuda.current)


def test_the_students_forward_is_queued_between_the_teachers_and_the_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    model = distiller(teacher_stream=True)
    monkeypatch.setattr(Distiller, "_device", lambda self: torch.device("cuda"))
    for name, module in {"teacher": model.teacher, "student": model.student, "method": model.method}.items():
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: cuda.log.append(f"{name} on {cuda.current.name}")
        )
    prepared = model.prepare_batch(OrderedLoader().batches[0])
    model(prepared)
    with torch.no_grad():
        model(prepared)
    second_forward = ["student on main", "main waits for the event on side", "method on main"]
    assert cuda.log == [
        "side waits for main",
        "event on side",
        "teacher on side",
        "event on side",
        "student on main",
        "main waits for the event on side",
        "method on main",
        *second_forward,
    ]


def test_the_wait_comes_also_after_a_student_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    model = distiller(teacher_stream=True)
    monkeypatch.setattr(Distiller, "_device", lambda self: torch.device("cuda"))
    prepared = model.prepare_batch(OrderedLoader().batches[0])

    def fail(module: Any, inputs: Any) -> None:
        raise FloatingPointError("nothing to match")

    model.student.register_forward_pre_hook(fail)
    with pytest.raises(FloatingPointError):
        model(prepared)
    assert cuda.log[-1] == "main waits for the event on side"


def test_the_time_of_work_on_another_stream_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    times = TimeSplit(torch.device("cuda"))
    with times.part("teacher") as elsewhere:
        for _ in range(2):
            with SideStream().work(torch.device("cuda")) as work:
                assert isinstance(work, SideWork)
            elsewhere.append(work.events)
    with times.part("student"):
        pass
    assert times.seconds() == {"teacher": 4.0, "student": 9.0}


@pytest.mark.gpu
def test_numbers_are_equal_and_times_are_told() -> None:
    batch = OrderedLoader().batches[0]
    models = [distiller(teacher_stream=streamed).cuda() for streamed in (False, True)]
    plain, streamed = (model.prepare_batch(batch) for model in models)
    assert plain.side_work is None and streamed.side_work is not None
    streamed.side_work.wait()
    for name in ("neck", "head"):
        torch.testing.assert_close(streamed.teacher_taps[name], plain.teacher_taps[name], rtol=0, atol=0)
    runs = [trainer(model) for model in models]
    losses = []
    for run in runs:
        run.storage = run_one_step(run)
        run.flush_scalars()
        latest = run.storage.latest()
        losses.append({name: value for name, (value, _) in latest.items() if name.startswith("loss_")})
        assert latest["teacher_time"][0] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
