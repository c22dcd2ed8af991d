"""Starting the processes of a run, and ending all of them when one fails."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.engine.termination import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    FIRST_INTERRUPT,
    INTERRUPTED,
    TrainingStopped,
    interrupts_stop,
    status_and_name,
)
from mokd_det.engine.torchrun import RankInfo, rank_info_from_environment
from mokd_det.errors import ConfigError, MoKDError

__all__ = ["EXIT_BUG", "EXIT_INTERRUPTED", "EXIT_STOPPED", "EXIT_USER_ERROR", "launch"]

EXIT_BUG = 1
"""Exit status of a failure that is not the input's."""

EXIT_USER_ERROR = 2
"""Exit status of a :class:`MoKDError`."""


def launch(
    main: Callable[..., Any],
    num_processes: int = 1,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
    check: Callable[..., Any] | None = None,
    timeout: timedelta = timedelta(minutes=30),
    grace_seconds: float = 5.0,
) -> int:
    """Run ``main(*args)`` in ``num_processes`` processes on this machine: one per GPU, or gloo processes on a CPU.

    Like Detectron2's ``launch``, and further: a machine without GPUs shares its cores between the processes
    (unless OMP_NUM_THREADS is set); when one process fails, the others get ``grace_seconds`` to report and
    are then ended, whatever they are doing; the first report is printed once; when this process disappears,
    so do its children. SIGTERM to this process is handed on to them. Ctrl-C stops a training in order, as SIGTERM
    does; a second one ends everything at once.

    Where torchrun (or another program that sets its variables, see :mod:`mokd_det.engine.torchrun`) has started the
    processes, this one joins them as the rank that it is, and leaves their end to that program.

    Args:
        main: a function of an importable module.
        num_processes: on this machine.
        num_machines: that take part.
        machine_rank: number of this machine.
        dist_url: where the processes meet; "auto": a private file, for one machine.
        args: for ``main``; must be picklable with several processes.
        check: called as ``check(*args)`` in this process before it starts others, so that a mistake in the input
            costs no start of theirs; a single process finds its mistakes itself.
        timeout: of collective operations.
        grace_seconds: between a failure and the end of the other processes.

    Returns:
        Exit status for ``sys.exit``: 0, or ``EXIT_USER_ERROR`` for a :class:`MoKDError`, whose message goes
        to stderr as "error: …", or ``EXIT_STOPPED`` (``EXIT_INTERRUPTED``) for a training that SIGTERM (Ctrl-C) ended,
        or ``EXIT_BUG`` for anything else, with its traceback.
    """
    try:
        info = rank_info_from_environment()
        if info is None:
            _check(num_processes, num_machines, machine_rank, dist_url)
        else:
            _check_rank_info(info, num_processes, num_machines)
        if check is not None and info is None and num_processes * num_machines > 1:
            check(*args)
    except MoKDError as error:
        _print_error(str(error))
        return EXIT_USER_ERROR
    if info is not None and info.world_size > 1:
        return _run_joined(main, info, args, timeout)
    if num_processes * num_machines > 1:
        return _launch_many(
            main, num_processes, num_machines, machine_rank, dist_url, args, timeout, grace_seconds
        )
    try:
        with interrupts_stop():
            main(*args)
    except MoKDError as error:
        _print_error(str(error))
        return EXIT_USER_ERROR
    except TrainingStopped as stop:
        return _print_stop(str(stop), stop.number)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    return 0


def _check(num_processes: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    if num_processes < 1 or num_machines < 1:
        raise ConfigError(f"--num-gpus {num_processes} and --num-machines {num_machines} must be 1 or more")
    if not 0 <= machine_rank < num_machines:
        raise ConfigError(f"--machine-rank {machine_rank} must be between 0 and {num_machines - 1}")
    if num_machines > 1 and dist_url == "auto":
        raise ConfigError("several machines need --dist-url, e.g. tcp://HOST:PORT of the first one")
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus {num_processes}, but this machine has {torch.cuda.device_count()}")


def _check_rank_info(info: RankInfo, num_processes: int, num_machines: int) -> None:
    machines = info.world_size // info.local_world_size
    if num_processes not in (1, info.local_world_size) or num_machines not in (1, machines):
        raise ConfigError(
            f"--num-gpus {num_processes} --num-machines {num_machines}, but {info.world_size} processes, "
            f"{info.local_world_size} on each machine, have been started already (RANK and WORLD_SIZE are set, as by "
            "torchrun): leave both out"
        )
    if torch.cuda.is_available() and info.local_world_size > torch.cuda.device_count():
        raise ConfigError(
            f"{info.local_world_size} processes on this machine, but it has {torch.cuda.device_count()} GPUs"
        )


def _run_joined(main: Callable[..., Any], info: RankInfo, args: Sequence[Any], timeout: timedelta) -> int:
    """Run as one rank among processes that others have started, which also end them when one fails."""
    store: dist.Store | None = None
    try:
        try:
            store = next(rendezvous("env://", timeout=timeout))[0]
        except (RuntimeError, ValueError) as error:
            address = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
            raise _meeting_error(address, error) from error
        _enter_group(info, store, timeout)
        with interrupts_stop():
            main(*args)
        _leave_group()
        return 0
    except MoKDError as error:
        if _is_first(store, "error"):
            _print_error(str(error))
        status = EXIT_USER_ERROR
    except TrainingStopped as stop:
        status, _ = status_and_name(stop.number)
        if _is_first(store, "stop"):
            _print_stop(str(stop), stop.number)
    except KeyboardInterrupt:
        if _is_first(store, "stop"):
            print(INTERRUPTED, file=sys.stderr, flush=True)
        status = EXIT_INTERRUPTED
    except Exception:
        failure = traceback.format_exc()
        # When one rank fails, its partners often fail at the broken connection: the user's error is the cause.
        time.sleep(1.0)
        if _is_first(store, "error"):
            print(f"rank {info.rank} failed:\n{failure}", file=sys.stderr, flush=True)
        status = EXIT_BUG
    _leave_at_once(status)


def _is_first(store: dist.Store | None, what: str) -> bool:
    """Whether no other rank has spoken of it; True as well where they can no longer be asked."""
    if store is None:
        return True
    try:
        return bool(store.add(f"mokd_det/{what}", 1) == 1)
    except (RuntimeError, OSError):
        return True


def _launch_many(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: Sequence[Any],
    timeout: timedelta,
    grace_seconds: float,
) -> int:
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    with contextlib.ExitStack() as stack:
        # Reports go through files: a process killed while writing one cannot block the reader.
        reports = stack.enter_context(tempfile.TemporaryDirectory(prefix="mokd-"))
        if dist_url == "auto":
            # A file cannot be taken by another program between choosing and using it, as a port can.
            dist_url = f"file://{reports}/store"
        # OpenMP reads the variable when torch is imported, so it must stand before the process starts.
        stack.enter_context(_default_environment("OMP_NUM_THREADS", str(threads)))
        workers = [
            context.Process(
                target=_worker,
                args=(
                    local_rank,
                    main,
                    num_processes,
                    num_machines,
                    machine_rank,
                    dist_url,
                    args,
                    timeout,
                    reports,
                ),
                name=f"rank {machine_rank * num_processes + local_rank}",
            )
            for local_rank in range(num_processes)
        ]
        stack.enter_context(_handing_on(workers))
        try:
            with _ignoring_interrupts():
                for worker in workers:
                    worker.start()
            interrupts = stack.enter_context(_Interrupts(workers))
            failed = _first_failure(workers)
            if failed is None:
                return 0
            deadline = time.monotonic() + grace_seconds
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
            # A partner may notice the broken connection before this process sees that the other one is gone.
            failed = next((w for w in workers if _died_silently(w, Path(reports))), failed)
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr, flush=True)
            return EXIT_INTERRUPTED
        finally:
            _end(workers)
        return _report(failed, Path(reports), signal.SIGINT if interrupts.count else None)


def _send(workers: Sequence[multiprocessing.process.BaseProcess], number: signal.Signals) -> None:
    for worker in workers:
        # A process that has ended may be unknown to the system by now.
        with contextlib.suppress(ProcessLookupError):
            if worker.pid is not None and worker.exitcode is None:
                os.kill(worker.pid, number)


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Install a handler; elsewhere than in the main thread, which alone gets signals, none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


def _handing_on(
    workers: Sequence[multiprocessing.process.BaseProcess],
) -> contextlib.AbstractContextManager[None]:
    """Pass SIGTERM that this process gets on to the others, which know what to do about it."""
    return _handler(signal.SIGTERM, lambda *_: _send(workers, signal.SIGTERM))


def _ignoring_interrupts() -> contextlib.AbstractContextManager[None]:
    """Processes started inside never see a Ctrl-C, which a terminal sends to all: they are told by this one."""
    return _handler(signal.SIGINT, signal.SIG_IGN)


class _Interrupts(contextlib.ExitStack):
    """What Ctrl-C does to the ranks: the first asks them to stop in order, the second ends them.

    Attributes:
        count: how many there were.
    """

    def __init__(self, workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
        super().__init__()
        self.count = 0
        self._workers = workers

    def __enter__(self) -> _Interrupts:
        super().__enter__()
        self.enter_context(_handler(signal.SIGINT, self._interrupted))
        return self

    def _interrupted(self, *_: Any) -> None:
        self.count += 1
        if self.count == 1:
            os.write(2, f"{FIRST_INTERRUPT}\n".encode())
            _send(self._workers, signal.SIGTERM)
            return
        _send(self._workers, signal.SIGKILL)
        raise KeyboardInterrupt


@contextlib.contextmanager
def _default_environment(name: str, value: str) -> Iterator[None]:
    was_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not was_set:
            del os.environ[name]


def _first_failure(workers: Sequence[multiprocessing.process.BaseProcess]) -> Any:
    """Wait until all have ended well (None) or one has failed."""
    running = list(workers)
    while running:
        multiprocessing.connection.wait([worker.sentinel for worker in running])
        for worker in [worker for worker in running if not worker.is_alive()]:
            worker.join()
            if worker.exitcode != 0:
                return worker
            running.remove(worker)
    return None


def _end(workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
    started = [worker for worker in workers if worker.pid is not None]
    for worker in started:
        if worker.is_alive():
            worker.terminate()
    deadline = time.monotonic() + 3.0
    for worker in started:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()
            worker.join()


def _write_report(reports: str, rank: int, is_user_error: bool, text: str) -> None:
    with atomic_write(Path(reports) / f"{rank}.json", "w") as handle:
        json.dump({"rank": rank, "time": time.time(), "is_user_error": is_user_error, "text": text}, handle)


def _write_stop(reports: str, text: str) -> None:
    with atomic_write(Path(reports) / "stopped", "w") as handle:
        handle.write(text)


def _died_silently(worker: multiprocessing.process.BaseProcess, reports: Path) -> bool:
    """Whether a process has ended badly without a word: killed, or by ``os._exit`` somewhere in a library."""
    rank = worker.name.removeprefix("rank ")
    return worker.exitcode not in (None, 0, EXIT_STOPPED) and not (reports / f"{rank}.json").exists()


def _report(failed: Any, reports: Path, number: signal.Signals | None = None) -> int:
    found = sorted(
        (json.loads(file.read_text()) for file in reports.glob("*.json")), key=lambda report: report["time"]
    )
    stopped = reports / "stopped"
    if stopped.exists() and not found:
        return _print_stop(stopped.read_text(), number)
    is_user_error = any(report["is_user_error"] for report in found)
    was_killed = failed.exitcode is not None and failed.exitcode < 0
    if not found or (_died_silently(failed, reports) and not is_user_error):
        if failed.exitcode == -signal.SIGTERM:
            return _print_stop("stopped outside of a training step; nothing to save", number)
        how = f"with status {failed.exitcode}"
        if was_killed:
            how = f"by signal {signal.Signals(-failed.exitcode).name}"
            how += " (often: out of memory)" if -failed.exitcode == signal.SIGKILL else ""
        _print_error(f"the process of {failed.name} was ended {how}; all others were ended too")
        return EXIT_BUG
    # When one rank fails, its partners often fail at the broken connection: the user's error is the cause.
    first = next((report for report in found if report["is_user_error"]), found[0])
    if first["is_user_error"]:
        _print_error(first["text"])
        return EXIT_USER_ERROR
    print(
        f"rank {first['rank']} failed; all others were ended:\n{first['text']}", file=sys.stderr, flush=True
    )
    return EXIT_BUG


def _worker(
    local_rank: int,
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: Sequence[Any],
    timeout: timedelta,
    reports: str,
) -> None:
    rank = machine_rank * num_processes + local_rank
    _die_with_parent()
    status = 0
    try:
        info = RankInfo(rank, num_machines * num_processes, local_rank, num_processes)
        _enter_group(info, dist_url, timeout)
        main(*args)
        _leave_group()
    except MoKDError as error:
        _write_report(reports, rank, True, str(error))
        status = EXIT_USER_ERROR
    except TrainingStopped as stop:
        _write_stop(reports, str(stop))
        status = EXIT_STOPPED
    except Exception:
        _write_report(reports, rank, False, traceback.format_exc())
        status = EXIT_BUG
    if status:
        _leave_at_once(status)


def _enter_group(info: RankInfo, meeting: str | dist.Store, timeout: timedelta) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(info.local_rank)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            **({"init_method": meeting} if isinstance(meeting, str) else {"store": meeting}),
            world_size=info.world_size,
            rank=info.rank,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise _meeting_error(f"--dist-url {meeting}", error) from error
    comm.create_local_process_group(info.local_world_size)
    comm.synchronize()


def _meeting_error(address: str, error: Exception) -> Exception:
    """What to raise where the processes could not meet: a mistake in the address becomes one line."""
    text = str(error)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return ConfigError(f"{address}: another program uses this port on this machine; give another one")
    if (
        isinstance(error, ValueError)
        or "client socket has failed to connect" in text
        or "getaddrinfo" in text
    ):
        return ConfigError(f"{address}: the processes cannot meet there ({text.splitlines()[0][:200]})")
    return error


def _leave_group() -> None:
    comm.synchronize()
    # torch 2.4 hangs where a data-parallel wrapper outlives its process group; trainer and hooks are a cycle.
    gc.collect()
    dist.destroy_process_group()


def _leave_at_once(status: int) -> NoReturn:
    """End this process: a normal exit would wait for threads of the process group, which wait for partners."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(EXIT_BUG)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _print_stop(message: str, number: signal.Signals | None) -> int:
    """Say what was stopped, and by what; returns the exit status."""
    status, name = status_and_name(number)
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return status


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
