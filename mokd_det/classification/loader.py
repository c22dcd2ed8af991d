"""Loaders of classification: batches for training and evaluation, the same whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mokd_det.classification.batch import ClassificationBatch
from mokd_det.classification.dataset import ImageDataset
from mokd_det.classification.mixing import LabelMixer
from mokd_det.classification.negatives import NegativeSampler
from mokd_det.data.sampling import EpochBatches, SampleKey, augmentation_rng
from mokd_det.data.stream import EndlessLoader, Failure, build_share_loader, or_failure
from mokd_det.data.view_key import ViewKey, view_key
from mokd_det.errors import ConfigError

__all__ = [
    "ClassificationTrainLoader",
    "build_classification_test_loader",
    "build_classification_train_loader",
]

Transform = Callable[[Image.Image], Tensor]


class ClassificationTrainLoader(EndlessLoader[ClassificationBatch]):
    """Endless training batches of this process; see :class:`~mokd_det.data.stream.EndlessLoader`.

    Attributes:
        dataset: what the images come from; ``indices`` and ``negatives`` of the batches are positions in it.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        batches: EpochBatches,
        mixer: LabelMixer,
        negatives: NegativeSampler | None = None,
        num_workers: int = 0,
        keep_views: bool = False,
    ) -> None:
        """See :func:`build_classification_train_loader`; the mixer makes the targets, and mixes."""
        samples = _TrainSamples(dataset, transform, negatives, batches.seed, {} if keep_views else None)
        super().__init__(samples, batches, num_workers, partial(_collate_train, batches, mixer))
        self.dataset = dataset
        self.data_name = dataset.name

    @property
    def num_classes(self) -> int:
        """K, which the model must have."""
        return self.dataset.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the K classes, which the model must have."""
        return self.dataset.class_names

    def fingerprint(self) -> str:
        """A digest of which image is at which index."""
        return self.dataset.fingerprint()


def build_classification_train_loader(
    dataset: ImageDataset,
    transform: Transform,
    total_batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    *,
    mixup: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
    repeated_augmentation: int = 1,
    negatives: int = 0,
    views: int | None = None,
    keep_views: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> ClassificationTrainLoader:
    """Loader of one training process.

    Args:
        dataset: the labelled images.
        transform: makes a normalised float tensor (3, H, W) from an image, e.g. ``timm.data.create_transform``.
            It may draw from python's, numpy's and torch's global generators, which are seeded for each image.
        total_batch_size: images per batch over all processes.
        num_workers: loading processes; no influence on the batches.
        seed: of order, augmentation, mixing and negatives, non-negative.
        mixup: arguments of ``timm.data.Mixup`` (:class:`~mokd_det.classification.mixing.LabelMixer`); None: no mixing.
        label_smoothing: ε of the targets.
        repeated_augmentation: copies of each image in an epoch, which lasts as long as without (DeiT's 3).
        negatives: positions of other-class images per image, for methods that contrast; 0: none.
        views: augment each image in so many ways only, which take turns by epoch (repeated augmentation: by copy); the
            batches then have ``view_keys``. None: augment anew in every epoch.
        keep_views: keep the augmented images in the memory of each loading process: nothing is computed twice, no
            number changes.
        rank, world_size: None: Detectron2's.

    Returns:
        An endless iterable of :class:`ClassificationBatch`. Batch k of a rank is a pure function of the seed, k,
        the rank and the number of ranks.

    Raises:
        DatasetError: fewer images than a batch; while iterating, images that cannot be used, from workers too.
        ConfigError: settings that contradict each other or are out of range.
    """
    batches = EpochBatches(
        len(dataset),
        total_batch_size,
        seed=seed,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
        repeats=repeated_augmentation,
        views=views,
    )
    if views is not None and mixup is not None:
        raise ConfigError(
            f"views={views} fixes how each image looks, but mixup blends it with others of its batch, which change; "
            "use one of the two (mixup=None or views=None)"
        )
    if keep_views and views is None:
        raise ConfigError("keep_views=True keeps the views of each image; set views to how many there are")
    if negatives < 0:
        raise ConfigError(f"negatives={negatives}: must not be negative")
    return ClassificationTrainLoader(
        dataset,
        transform,
        batches,
        LabelMixer(dataset.num_classes, batches.batch_size, seed, mixup, label_smoothing),
        NegativeSampler(dataset.labels, negatives, seed) if negatives else None,
        num_workers,
        keep_views,
    )


def build_classification_test_loader(
    dataset: ImageDataset, transform: Transform, batch_size: int = 64, num_workers: int = 0
) -> DataLoader[ClassificationBatch]:
    """Loader of one evaluating process: its contiguous share of the images, in order, each exactly once.

    The batches have their labels for targets; the last one may be smaller. For the arguments see
    :func:`build_classification_train_loader`.

    Raises:
        DatasetError: while iterating, images that cannot be used, from workers too.
        ConfigError: a batch size below 1 or a negative worker count.
    """
    return build_share_loader(_Samples(dataset, transform), batch_size, num_workers, _collate)


@dataclass(frozen=True)
class _Sample:
    image: Tensor
    label: int
    index: int
    name: str
    position: int
    negatives: np.ndarray | None
    view_key: ViewKey | None


class _Samples(Dataset[Any]):
    """Transformed images by position in the data set."""

    def __init__(self, dataset: ImageDataset, transform: Transform) -> None:
        self._dataset = dataset
        self._transform = transform

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> _Sample | Failure:
        return or_failure(self.read, index)

    def read(self, index: int, key: SampleKey | None = None, negatives: np.ndarray | None = None) -> _Sample:
        """A sample of which an error is raised, not returned."""
        name = self._dataset.image_name(index)
        image: Any = self._transform(self._dataset.read(index))
        is_tensor = isinstance(image, Tensor)
        if not (is_tensor and image.ndim == 3 and image.shape[0] == 3 and image.is_floating_point()):
            found = f"{image.dtype} {tuple(image.shape)}" if is_tensor else type(image).__name__
            raise ConfigError(
                f"the transform made {found} of {name}; the loader needs a normalised float tensor (3, H, W)"
            )
        return _Sample(
            image,
            label=int(self._dataset.labels[index]),
            index=index,
            name=name,
            position=0 if key is None else key.position,
            negatives=negatives,
            view_key=None if key is None or key.view is None else view_key(key, image),
        )


class _TrainSamples(Dataset[Any]):
    """Transformed images by :class:`SampleKey`, augmented with random numbers that only the key decides."""

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        negatives: NegativeSampler | None,
        seed: int,
        kept: dict[tuple[int, int | None], _Sample] | None,
    ) -> None:
        self._labels = dataset.labels
        self._images = _Samples(dataset, transform)
        self._negatives = negatives
        self._seed = seed
        self._kept = kept  # by record and view, which decide the image; None: nothing is kept

    def __getitem__(self, key: SampleKey) -> _Sample | Failure:
        negatives = None
        if self._negatives is not None:
            negatives = self._negatives.draw(int(self._labels[key.record]), key.position)
        if self._kept is not None and (key.record, key.view) in self._kept:
            sample = self._kept[key.record, key.view]
            return replace(sample, position=key.position, negatives=negatives)
        with augmentation_rng(self._seed, key):
            sample = or_failure(self._images.read, key.record, key, negatives)
        if self._kept is not None and isinstance(sample, _Sample):
            self._kept[key.record, key.view] = sample
        return sample


def _collate_train(batches: EpochBatches, mixer: LabelMixer, samples: list[_Sample]) -> ClassificationBatch:
    return _collate(samples, mixer, batches.epoch_at(samples[0].position))


def _collate(
    samples: list[_Sample], mixer: LabelMixer | None = None, epoch: float = 0.0
) -> ClassificationBatch:
    for sample in samples:
        if sample.image.shape != samples[0].image.shape:
            raise ConfigError(
                f"the transform made images of different sizes: {tuple(samples[0].image.shape)} of "
                f"{samples[0].name} and {tuple(sample.image.shape)} of {sample.name}; it must crop or resize to one"
            )
    images = torch.stack([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    targets = labels
    if mixer is not None:
        images, targets = mixer(images, labels, samples[0].position)
    negatives = [sample.negatives for sample in samples if sample.negatives is not None]
    view_keys = [sample.view_key for sample in samples if sample.view_key is not None]
    return ClassificationBatch(
        images=images,
        targets=targets,
        labels=labels,
        indices=torch.tensor([sample.index for sample in samples]),
        names=[sample.name for sample in samples],
        epoch=epoch,
        negatives=torch.from_numpy(np.stack(negatives)) if negatives else None,
        view_keys=view_keys or None,
    )
