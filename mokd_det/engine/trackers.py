"""Experiment trackers beside TensorBoard and metrics.json: Weights & Biases, MLflow.

Named by the top-level key ``trackers`` of a configuration, a mapping of names to calls. A tracker that fails while the
training runs (no network, a server that is gone) is left out from then on with one warning: the training goes on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.errors import ConfigError, first_line

__all__ = ["MLflowWriter", "Tracker", "WandbWriter", "flat_settings"]

logger = logging.getLogger(__name__)

RUN_IDS = "trackers.json"
"""Tracker → id of its run, in the output directory: a resumed training continues the same run."""
_WINDOW = 20  # iterations that losses are smoothed over, as in metrics.json


class Tracker(EventWriter):
    """Sends every scalar of the storage once, under its iteration.

    Attributes:
        package: what must be installed.
    """

    package = ""

    def __init__(self) -> None:
        """
        Raises:
            ConfigError: the package is not installed.
        """
        try:
            self.library: Any = import_module(self.package)
        except ImportError:
            raise ConfigError(
                f"trackers: {type(self).__name__} needs the package {self.package}: pip install 'mokd_det[trackers]'"
            ) from None
        self._sent: dict[str, int] = {}
        self._failed = False

    def begin(self, output_dir: str, settings: Mapping[str, Any], *, resumed: bool) -> None:
        """Open a run, or the run of the training that is resumed; ``settings``: see :func:`flat_settings`.

        Raises:
            ConfigError: the tracker refuses (no such server, not logged in).
        """
        path = Path(output_dir) / RUN_IDS
        ids: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        try:
            ids[self.package] = self._open(output_dir, settings, ids.get(self.package) if resumed else None)
        except Exception as error:
            raise ConfigError(f"trackers: {type(self).__name__} cannot start: {first_line(error)}") from error
        with atomic_write(path, "w") as file:
            json.dump(ids, file)

    def write(self) -> None:
        """Send what is new in the storage."""
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._sent.get(name, -1):
                by_iteration.setdefault(iteration, {})[name] = float(value)
                self._sent[name] = iteration
        for iteration in sorted(by_iteration):
            self._try(self._send, iteration, by_iteration[iteration])

    def close(self) -> None:
        """End the run."""
        self._try(self._close)

    def _try(self, call: Any, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except Exception as error:
            self._failed = True
            logger.warning(
                "%s failed (%s); the training goes on without it", type(self).__name__, first_line(error)
            )

    @abstractmethod
    def _open(self, output_dir: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        """Open a new run, or the one of that id; returns its id."""

    @abstractmethod
    def _send(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Store the scalars of an iteration."""

    @abstractmethod
    def _close(self) -> None:
        """End the run."""


class WandbWriter(Tracker):
    """Weights & Biases.

    Args:
        project: that the run belongs to.
        name: of the run; None: that of the output directory.
        mode: "online", "offline" (files below the output directory, for ``wandb sync``), "disabled"; None: what the
            environment variable ``WANDB_MODE`` says, else online.
        tags: of the run.
    """

    package = "wandb"

    def __init__(
        self,
        project: str = "mokd_det",
        name: str | None = None,
        mode: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ConfigError(f"trackers: WandbWriter mode={mode!r} is not 'online', 'offline' or 'disabled'")
        super().__init__()
        self._arguments = {"project": project, "name": name, "mode": mode, "tags": tuple(tags)}

    def _open(self, output_dir: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        arguments = {**self._arguments, "name": self._arguments["name"] or Path(output_dir).name}
        self._run = self.library.init(
            **arguments,
            dir=output_dir,
            config=dict(settings),
            id=run_id,
            resume="allow",
            # The log is the project's own; wandb need not read what goes to the terminal.
            settings=self.library.Settings(console="off", silent=True),
        )
        # A resumed run sends iterations again that were not yet in a checkpoint: they are an axis, not wandb's steps.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return str(self._run.id)

    def _send(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "iteration": iteration})

    def _close(self) -> None:
        self._run.finish()


class MLflowWriter(Tracker):
    """MLflow, the full package or ``mlflow-skinny``.

    Args:
        experiment: that the run belongs to; made if it is not there.
        name: of the run; None: that of the output directory.
        tracking_uri: a server, a data base or a folder (``file:./mlruns``); None: what the environment variable
            ``MLFLOW_TRACKING_URI`` says, else a folder ``mlruns`` below the output directory.
    """

    package = "mlflow"

    def __init__(
        self, experiment: str = "mokd_det", name: str | None = None, tracking_uri: str | None = None
    ) -> None:
        super().__init__()
        self._experiment, self._name, self._uri = experiment, name, tracking_uri

    def _open(self, output_dir: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        folder = (Path(output_dir) / "mlruns").resolve().as_uri()
        # MLflow wants to be asked for folders; its data bases need the full package.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = self._uri or (None if self.library.environment_variables.MLFLOW_TRACKING_URI.get() else folder)
        self._client = self.library.MlflowClient(uri)
        if run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
            run = self._client.create_run(experiment, run_name=self._name or Path(output_dir).name)
            run_id = str(run.info.run_id)
            limit = 500  # of a value
            for key, value in settings.items():
                self._client.log_param(run_id, _mlflow_name(key), str(value)[:limit])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._id = run_id
        return run_id

    def _send(self, iteration: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self.library.entities.Metric(_mlflow_name(name), value, now, iteration)
            for name, value in scalars.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def _close(self) -> None:
        self._client.set_terminated(self._id)


def flat_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys; calls and other objects as their names."""
    if isinstance(config, Mapping):
        parts = [flat_settings(value, f"{prefix}{key}.") for key, value in config.items()]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(config, (list, tuple)) and any(isinstance(item, Mapping) for item in config):
        return flat_settings(dict(enumerate(config)), prefix)
    plain = isinstance(config, (str, int, float, bool, type(None), list, tuple))
    name = getattr(config, "__qualname__", None)
    return {prefix.rstrip("."): config if plain else f"{config.__module__}.{name}" if name else str(config)}


def _mlflow_name(name: str) -> str:
    """With what MLflow allows in names only: class names may hold anything."""
    return re.sub(r"[^\w\-. /]", "_", name)
