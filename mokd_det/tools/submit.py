"""Queue a training on a SLURM cluster, on one or several machines; it is queued again when its time is up.

The command line: :mod:`mokd_det.tools.parsers.submit`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mokd_det.config import load_config
from mokd_det.engine.submission import SubmittedTraining, submit, wait_for
from mokd_det.tools import command
from mokd_det.tools.parsers import submit as reader
from mokd_det.tools.parsers import train_net


def run(options: argparse.Namespace) -> int:
    """Check, queue, and wait if told so."""
    training = train_net.parse(options.training)
    load_config(training.config_file, training.opts, training=not training.eval_only)
    slurm = {}
    for setting in options.slurm:
        key, _, value = setting.partition("=")
        slurm[key] = int(value) if value.isdigit() else value
    command = [sys.executable, "-m", "mokd_det", "train", *options.training]
    job = submit(
        SubmittedTraining(command if training.resume else [*command, "--resume"], Path.cwd()),
        options.logs,
        cluster="local" if options.local else "slurm",
        nodes=options.nodes,
        tasks_per_node=options.gpus,
        minutes=max(1, round(60 * options.hours)),
        notice_seconds=options.notice,
        requeues=options.requeues,
        slurm=slurm,
    )
    print(f"job {job.job_id}; output in {options.logs}/{job.job_id}_*_log.out and .err", flush=True)
    if options.wait:
        wait_for(job, options.logs)
    return 0


main = command(reader, run)
