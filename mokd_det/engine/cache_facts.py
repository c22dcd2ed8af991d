"""What the teacher's taps of a training image follow from, as far as the configuration says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mokd_det.contract import as_training_loader

__all__ = ["cache_facts"]

_LEAVES_IMAGES_ALONE = frozenset(
    ("total_batch_size", "num_workers", "views", "label_smoothing", "negatives", "rank", "world_size", "seed")
)
"""Arguments of the loaders that change neither an image of a view nor its index.

The seed does where images are augmented at random, which shows in their pixels; where they are not, runs of several
seeds may share a cache.
"""


def cache_facts(cfg: DictConfig, loader: Any) -> dict[str, str]:
    """Full key → value of the teacher's and the training data's configuration, and a fingerprint of the data."""
    data = OmegaConf.to_container(cfg.dataloader.train, resolve=True)
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key not in _LEAVES_IMAGES_ALONE}
    facts = dict(_flat("dataloader.train", data))
    # Of the whole configuration, since a teacher may refer to what stands beside it.
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    facts.update(_flat("model.teacher", model["teacher"]))
    fingerprint = as_training_loader(loader).fingerprint()
    if fingerprint is not None:
        facts["the fingerprint of the training data"] = fingerprint
    return facts


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for place, item in enumerate(value):
            yield from _flat(f"{key}.{place}", item)
    elif callable(value):
        yield key, f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    else:
        yield key, str(value)
