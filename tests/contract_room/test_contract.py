"""Models, batches and loaders that say nothing of themselves, and those that say it where nobody listens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mokd_det.contract import (
    LoadedBatch,
    PlainLoader,
    PlainTask,
    PreparedBatch,
    TrainingLoader,
    TrainingTask,
    as_task,
    as_training_loader,
    loaded_batch,
)
from mokd_det.errors import ConfigError


def test_a_plain_model_takes_part_with_defaults_and_its_own_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    model.num_classes = 7
    task = as_task(model)
    assert isinstance(task, PlainTask) and task.eval_model is model and task.num_classes == 7
    assert list(task.eval_model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    shared = task.shared_parameters()
    assert [id(p) for p in shared] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]
    assert task.private_parameters() == [] == task.last_student_taps() and task.checkpoint_parts() == {}
    batch = [{"image": torch.zeros(1)}]
    assert task.prepare_batch(batch) is batch and task.teacher is None and task.teacher_digest() is None


def test_a_plain_model_is_asked_for_timms_list_of_undecayed_names():
    class Network(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    assert as_task(Network(1, 1)).no_weight_decay() == {"weight"}


@pytest.mark.parametrize("name", ["prepare_batch", "after_step", "shared_parameters", "signed_losses"])
def test_a_definition_that_nobody_would_ask_for_is_refused(name):
    model = type("Own", (nn.Module,), {name: lambda self, *_: None})()
    with pytest.raises(ConfigError, match=rf"^Own defines {name}, .*`class Own\(TrainingTask\)`$"):
        as_task(model)
    derived = type("Own", (TrainingTask,), {name: lambda self, *_: None})()
    assert as_task(derived) is derived


def test_loaders():
    assert list(as_training_loader([1, 2])) == [1, 2]
    assert as_training_loader([]).fingerprint() is None and not PlainLoader([]).augments_endlessly

    class Own:
        def __iter__(self):
            return iter(())

        def start_from(self, batch_index):
            pass

    with pytest.raises(ConfigError, match=r"^Own defines start_from, .*TrainingLoader"):
        as_training_loader(Own())
    with pytest.raises(NotImplementedError, match="__iter__"):
        iter(TrainingLoader())


def test_a_prepared_batch_knows_the_loaders():
    class Images(LoadedBatch):
        images, names, view_keys = torch.zeros(1, 3, 2, 2), ["a.png"], None

    batch = Images()
    assert loaded_batch(PreparedBatch(batch)) is batch and loaded_batch(batch) is batch
    assert batch.method_context().labels is None and PreparedBatch(batch).side_events is None
