"""A training as a job of SLURM, which may be pre-empted, run into its time limit, and be queued again."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mokd_det.engine.launch import EXIT_STOPPED
from mokd_det.errors import ConfigError, first_line

__all__ = ["SubmittedTraining", "submit", "wait_for"]


class SubmittedTraining:
    """One task of a job: runs a command that continues where it stopped, as the rank that submitit gives it.

    The signal that announces the end of the job reaches all tasks; the first one hands SIGTERM on to its training, in
    which all ranks then finish the step, and asks for the same job again. So the command must resume by itself.
    """

    def __init__(self, command: Sequence[str], folder: str | Path) -> None:
        """
        Args:
            command: program and arguments.
            folder: working directory.
        """
        self.command = list(command)
        self.folder = str(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """
        Returns:
            Exit status: 0, or ``EXIT_STOPPED`` where SIGTERM ended the training in order.

        Raises:
            RuntimeError: the training failed; what it said is in the task's log.
        """
        from submitit.helpers import TorchDistributedEnvironment

        # All GPUs of the machine stay visible: each process takes the one with its local number.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        self._process = subprocess.Popen(self.command, cwd=self.folder)
        status = self._process.wait()
        if status not in (0, EXIT_STOPPED):
            raise RuntimeError(f"the training ended with status {status}")
        return status

    def checkpoint(self) -> Any:
        """What submitit calls in the first task before the job ends: stop in order, and give it the job to queue."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        return DelayedSubmission(SubmittedTraining(self.command, self.folder))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}


def submit(
    training: SubmittedTraining,
    logs: Path,
    *,
    cluster: str,
    nodes: int,
    tasks_per_node: int,
    minutes: int,
    notice_seconds: int = 120,
    requeues: int = 10,
    slurm: Mapping[str, Any] | None = None,
) -> Any:
    """Queue a training with one process per GPU.

    Args:
        training: what to run.
        logs: folder of the tasks' output and of submitit's files.
        cluster: "slurm", or "local" for this machine.
        nodes: machines.
        tasks_per_node: processes on each, on SLURM with a GPU each.
        minutes: time limit of a run; at its end the job is queued again.
        notice_seconds: how long before that, or before pre-emption, the training is told to stop.
        requeues: how many times it may reach the time limit.
        slurm: further arguments of sbatch, e.g. ``{"partition": "gpu", "cpus_per_task": 8}``.

    Returns:
        submitit's job, with ``job_id`` and ``results()``.

    Raises:
        ConfigError: submitit or SLURM is missing, or settings that they do not take.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("submitting jobs needs the package submitit: pip install submitit") from error
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=requeues)
        executor.update_parameters(
            name="mokd_det",
            nodes=nodes,
            tasks_per_node=tasks_per_node,
            timeout_min=minutes,
            slurm_signal_delay_s=notice_seconds,
            **({"gpus_per_node": tasks_per_node} if cluster == "slurm" else {}),
            **{f"slurm_{key}": value for key, value in (slurm or {}).items()},
        )
        return executor.submit(training)
    except (RuntimeError, ValueError, NameError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"the job cannot be submitted: {error}") from error


def wait_for(job: Any, logs: Path) -> None:
    """Wait for a job's end.

    Raises:
        ConfigError: a task has failed.
    """
    from submitit.core.utils import UncompletedJobError

    try:
        job.results()
    except UncompletedJobError as error:
        raise ConfigError(
            f"job {job.job_id} failed, see {logs}/{job.job_id}_*_log.err: {first_line(error)}"
        ) from error
