"""What the rooms ask of each other's objects: a training model, a batch, a loader, each with its defaults."""

from mokd_det.contract.batch import LoadedBatch, MethodContext, Objects, PreparedBatch, loaded_batch
from mokd_det.contract.loader import PlainLoader, TrainingLoader, as_training_loader
from mokd_det.contract.task import PlainTask, TrainingTask, as_task

__all__ = [
    "LoadedBatch",
    "MethodContext",
    "Objects",
    "PlainLoader",
    "PlainTask",
    "PreparedBatch",
    "TrainingLoader",
    "TrainingTask",
    "as_task",
    "as_training_loader",
    "loaded_batch",
]
