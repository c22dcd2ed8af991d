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
from dataclasses import asdict, dataclass, field, replace
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
)
from mokd_det.engine.torchrun import RankInfo, rank_info_from_environment
from mokd_det.errors import ConfigError, MoKDError

__all__ = ["EXIT_BUG", "EXIT_INTERRUPTED", "EXIT_STOPPED", "EXIT_USER_ERROR", "launch"]

EXIT_BUG = 1
"""Exit status of a failure that is not the input's."""

EXIT_USER_ERROR = 2
"""Exit status of a :class:`MoKDError`."""

_PREFIXES = {EXIT_USER_ERROR: "error: ", EXIT_STOPPED: "SIGTERM: ", EXIT_INTERRUPTED: "Ctrl-C: "}


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
        return _Outcome(EXIT_USER_ERROR, str(error)).tell()
    if info is not None and info.world_size > 1:
        return _run_joined(main, info, args, timeout)
    if num_processes * num_machines > 1:
        first, world_size = machine_rank * num_processes, num_machines * num_processes
        infos = [RankInfo(first + local, world_size, local, num_processes) for local in range(num_processes)]
        return _launch_many(main, infos, dist_url, args, timeout, grace_seconds)
    with interrupts_stop():
        return _outcome_of(lambda: main(*args)).tell()


@dataclass(frozen=True)
class _Outcome:
    """How the work of a process ended.

    Attributes:
        status: its exit status.
        text: what to tell of it, without what stands before it by its status.
        time: when.
    """

    status: int
    text: str = ""
    time: float = field(default_factory=time.time)

    @property
    def is_failure(self) -> bool:
        return self.status in (EXIT_BUG, EXIT_USER_ERROR)

    def tell(self) -> int:
        """Print it, if it is not a good end; returns the status."""
        if self.status:
            prefix = "" if self.text == INTERRUPTED else _PREFIXES.get(self.status, "")
            print(prefix + self.text.rstrip("\n"), file=sys.stderr, flush=True)
        return self.status


def _outcome_of(work: Callable[[], object]) -> _Outcome:
    try:
        work()
    except MoKDError as error:
        return _Outcome(EXIT_USER_ERROR, str(error))
    except TrainingStopped as stop:
        return _Outcome(EXIT_INTERRUPTED if stop.number == signal.SIGINT else EXIT_STOPPED, str(stop))
    except KeyboardInterrupt:
        return _Outcome(EXIT_INTERRUPTED, INTERRUPTED)
    except Exception:
        return _Outcome(EXIT_BUG, traceback.format_exc())
    return _Outcome(0)


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

    def work() -> None:
        nonlocal store
        try:
            store = next(rendezvous("env://", timeout=timeout))[0]
        except (RuntimeError, ValueError) as error:
            address = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
            raise _meeting_error(address, error) from error
        _enter_group(info, store, timeout)
        with interrupts_stop():
            main(*args)
        _leave_group()

    outcome = _outcome_of(work)
    if not outcome.status:
        return 0
    if outcome.status == EXIT_BUG:
        # When one rank fails, its partners often fail at the broken connection: the user's error is the cause.
        time.sleep(1.0)
        outcome = replace(outcome, text=f"rank {info.rank} failed:\n{outcome.text}")
    if _is_first(store, "error" if outcome.is_failure else "stop"):
        outcome.tell()
    _leave_at_once(outcome.status)


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
    infos: Sequence[RankInfo],
    dist_url: str,
    args: Sequence[Any],
    timeout: timedelta,
    grace_seconds: float,
) -> int:
    context = multiprocessing.get_context("spawn")
    interrupts = 0

    def interrupted(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            os.write(2, f"{FIRST_INTERRUPT}\n".encode())
            _send(workers, signal.SIGTERM)
            return
        _send(workers, signal.SIGKILL)
        raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        # Reports go through files: a process killed while writing one cannot block the reader.
        reports = stack.enter_context(tempfile.TemporaryDirectory(prefix="mokd-"))
        if dist_url == "auto":
            # A file cannot be taken by another program between choosing and using it, as a port can.
            dist_url = f"file://{reports}/store"
        if "OMP_NUM_THREADS" not in os.environ:
            # OpenMP reads the variable when torch is imported, so it must stand before the process starts.
            os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(infos)))
            stack.callback(os.environ.pop, "OMP_NUM_THREADS", None)
        workers = [
            context.Process(
                target=_worker, args=(info, main, dist_url, args, timeout, reports), name=f"rank {info.rank}"
            )
            for info in infos
        ]
        # Processes know themselves what to do about SIGTERM.
        stack.enter_context(_handler(signal.SIGTERM, lambda *_: _send(workers, signal.SIGTERM)))
        try:
            # Processes started so never see a Ctrl-C, which a terminal sends to all: they are told by this one.
            with _handler(signal.SIGINT, signal.SIG_IGN):
                for worker in workers:
                    worker.start()
            stack.enter_context(_handler(signal.SIGINT, interrupted))
            failed = _first_failure(workers)
            if failed is None:
                return 0
            deadline = time.monotonic() + grace_seconds
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
            # A partner may notice the broken connection before this process sees that the other one is gone.
            failed = next((w for w in workers if _died_silently(w, Path(reports))), failed)
        except KeyboardInterrupt:
            return _Outcome(EXIT_INTERRUPTED, INTERRUPTED).tell()
        finally:
            _end(workers)
        return _report(failed, Path(reports), bool(interrupts)).tell()


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


def _write_report(reports: Path, rank: int, outcome: _Outcome) -> None:
    with atomic_write(reports / f"{rank}.json", "w") as handle:
        json.dump(asdict(outcome), handle)


def _died_silently(worker: multiprocessing.process.BaseProcess, reports: Path) -> bool:
    """Whether a process has ended badly without a word: killed, or by ``os._exit`` somewhere in a library."""
    rank = worker.name.removeprefix("rank ")
    return worker.exitcode not in (None, 0) and not (reports / f"{rank}.json").exists()


def _report(failed: Any, reports: Path, interrupted: bool = False) -> _Outcome:
    """What to tell of all ranks, of which ``failed`` was the first to end badly."""
    found = {int(file.stem): _Outcome(**json.loads(file.read_text())) for file in reports.glob("*.json")}
    failures = sorted((o.time, rank) for rank, o in found.items() if o.is_failure)
    stopped = EXIT_INTERRUPTED if interrupted else EXIT_STOPPED
    if found and not failures:
        return replace(next(iter(found.values())), status=stopped)
    # When one rank fails, its partners often fail at the broken connection: the user's error is the cause.
    for _, rank in failures:
        if found[rank].status == EXIT_USER_ERROR:
            return found[rank]
    if failures and not _died_silently(failed, reports):
        rank = failures[0][1]
        text = f"rank {rank} failed; all others were ended:\n{found[rank].text}"
        return replace(found[rank], text=text)
    if failed.exitcode == -signal.SIGTERM:
        return _Outcome(stopped, "stopped outside of a training step; nothing to save")
    how = f"with status {failed.exitcode}"
    if failed.exitcode < 0:
        how = f"by signal {signal.Signals(-failed.exitcode).name}"
        how += " (often: out of memory)" if failed.exitcode == -signal.SIGKILL else ""
    text = f"error: the process of {failed.name} was ended {how}; all others were ended too"
    return _Outcome(EXIT_BUG, text)


def _worker(
    info: RankInfo,
    main: Callable[..., Any],
    dist_url: str,
    args: Sequence[Any],
    timeout: timedelta,
    reports: str,
) -> None:
    _die_with_parent()

    def work() -> None:
        _enter_group(info, dist_url, timeout)
        main(*args)
        _leave_group()

    outcome = _outcome_of(work)
    if outcome.status:
        _write_report(Path(reports), info.rank, outcome)
        _leave_at_once(outcome.status)


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
    # torch hangs now and then (seen with 2.4 and 2.12) where a data-parallel wrapper outlives its process group;
    # trainer and hooks are a cycle.
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
