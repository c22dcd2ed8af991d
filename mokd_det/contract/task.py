"""What the trainer, the optimiser, the checkpoints and the distiller ask of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mokd_det.contract.unnoticed import refuse_unnoticed

__all__ = ["PlainTask", "TrainingTask", "as_task"]


class TrainingTask(nn.Module):
    """A model that takes part in more than its losses; everything has a default, which is that of a plain model.

    Its training forward takes a batch and returns a dict of scalar losses; its evaluation forward what the evaluator
    reads. A model that is no ``TrainingTask`` (Detectron2's, torchvision's, anybody's) is wrapped by :func:`as_task`
    where one is needed, so this is to be derived from only by models that say something of the below.

    Attributes:
        num_classes: contiguous classes, which the data must have; None: not known.
        class_names: of these classes; None: not known.
        signed_losses: names of the losses that can be 0 or negative by construction.
        needs_preparation: :meth:`prepare_method` must see the training set before the first step.
        has_teacher_cache: the training batches must say which views of which images they show.
    """

    num_classes: int | None = None
    class_names: Sequence[str] | None = None

    # --- what it consists of -----------------------------------------------------------------------------------

    @property
    def eval_model(self) -> nn.Module:
        """The part that is evaluated, averaged, exported and stored as a checkpoint's "model"."""
        return self

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen model it learns from; None: there is none."""
        return None

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        """What a checkpoint stores beside "model", by its key there."""
        return {}

    def parameter_parts(self) -> Mapping[str, Sequence[str]]:
        """Part (backbone, head …) → ``fnmatch`` patterns of the names in ``eval_model.named_parameters()``, by which
        conflict is measured and gradients are reported; {}: one part per first component of the names."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names in ``named_parameters()`` of what takes no weight decay, besides vectors (timm's convention)."""
        return set()

    def no_weight_decay_parameters(self) -> list[nn.Parameter]:
        """Those outside of :attr:`eval_model` that take no weight decay."""
        return []

    def save_pretrained(self, folder: str | Path) -> bool:
        """Write the model to a folder as the library it comes from loads it; False: there is no such form."""
        return False

    def missing_tap_hint(self, name: str) -> str:
        """Why a tap that others offer is not here; "" if there is no more to say than that."""
        return ""

    # --- one step ----------------------------------------------------------------------------------------------

    def prepare_batch(self, batch: Any) -> Any:
        """What the model is called with, as often as the balancer wants: everything that can be computed once per
        batch, before and apart from the student's forwards (the frozen teacher)."""
        return batch

    def shared_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that every objective may reach."""
        return [parameter for parameter in self.eval_model.parameters() if parameter.requires_grad]

    def private_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that only one objective reaches."""
        return []

    def last_student_taps(self) -> list[Tensor]:
        """Tensors, with their graph, of the latest training forward, for balancers that work on features."""
        return []

    def after_step(self) -> None:
        """Runs after every optimiser step that was taken (retraction to a manifold)."""

    # --- a whole training --------------------------------------------------------------------------------------

    @property
    def signed_losses(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_preparation(self) -> bool:
        return False

    def prepare_method(self, batches: Iterable[Any]) -> None:
        """One pass over the training set, where :attr:`needs_preparation` asks for it."""
        raise NotImplementedError(f"{type(self).__name__} needs no preparation; ask needs_preparation before")

    @property
    def has_teacher_cache(self) -> bool:
        return False

    def open_teacher_cache(self, facts: Mapping[str, str] | None = None) -> None:
        """Take the cache into use if it was made for these facts, where :attr:`has_teacher_cache`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no teacher's cache; ask has_teacher_cache before"
        )

    def teacher_digest(self) -> str | None:
        """A digest of the teacher's weights, by which a resumed run knows that it has the same one; None without."""
        return None

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log every so many iterations."""
        return {}


class PlainTask(TrainingTask):
    """A plain model under the contract; it is asked only what it is customary for models to say.

    It stands beside the training, not in it: the trainer calls the model itself, whose parameter names and
    ``state_dict`` keys are therefore what they would be without.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        refuse_unnoticed(model, TrainingTask, PlainTask)
        self.model = model
        self.num_classes = getattr(model, "num_classes", None)
        self.class_names = getattr(model, "class_names", None)

    @property
    def eval_model(self) -> nn.Module:
        return self.model

    def no_weight_decay(self) -> set[str]:
        listed: set[str] = getattr(self.model, "no_weight_decay", set)()
        return listed

    def forward(self, batch: Any) -> Any:
        return self.model(batch)


def as_task(model: nn.Module) -> TrainingTask:
    """The model itself if it is a :class:`TrainingTask`, else a :class:`PlainTask` of it (which may refuse it)."""
    return model if isinstance(model, TrainingTask) else PlainTask(model)
