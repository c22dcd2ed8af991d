"""What the teacher says about images that come back unchanged, kept in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from detectron2.utils import comm
from torch import Tensor

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.contract import LoadedBatch
from mokd_det.distillation.map_alignment import image_sizes
from mokd_det.distillation.tap_entries import all_finite, decode_rows, encode_rows
from mokd_det.distillation.tap_store import RowKey, TapStore, locked, remove_rows, rows_exist
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import CacheError, ConfigError, require_choice

__all__ = ["CachePrecision", "TeacherCache"]

CachePrecision = Literal["float16", "bfloat16", "float32"]

_FORMAT = "1"
_SHOWN = 3


class TeacherCache:
    """Taps of the teacher by image, view and padded size, in files that are mapped into memory.

    An image is looked up by its "view_key", which loaders with ``views`` give (:mod:`mokd_det.data.view_key`), and the
    height and width that its batch is padded to, since a teacher may see padding. What is not there is computed and
    added, in whole batches or, where a part is there, for the rest of the batch at the same padded size. All taps,
    computed or read, are rounded to the cache's precision, so that it makes no difference when an image was added; but
    a teacher's sums may differ in their last bits between batches of different sizes.

    The directory may be shared by ranks and by runs, at the same time too. ``cache.json`` there says what it was made
    for, and every entry from which pixels. See docs/methods.md.

    Args:
        directory: made if it does not exist.
        limit_gib: size at which nothing more is added, over all ranks.
        precision: of the stored numbers.
        overwrite: replace a cache that was made for something else, instead of refusing it.

    Raises:
        ConfigError: an unknown precision, no directory, or a limit that is not positive.
    """

    def __init__(
        self,
        directory: str,
        limit_gib: float = 10.0,
        precision: CachePrecision = "float16",
        overwrite: bool = False,
    ) -> None:
        require_choice("model.teacher_cache.precision", precision, CachePrecision)
        if not directory:
            raise ConfigError("model.teacher_cache.directory is empty; name a folder")
        if not limit_gib > 0:
            raise ConfigError(f"model.teacher_cache.limit_gib={limit_gib}: must be above 0")
        self.directory, self.limit_gib = Path(directory), limit_gib
        self.precision, self.overwrite = precision, overwrite
        self._store: TapStore | None = None
        self._asked = self._found = 0

    def __getstate__(self) -> dict[str, Any]:
        # Maps and locks are this process's; a copy opens its own.
        return {**self.__dict__, "_store": None}

    @property
    def is_open(self) -> bool:
        """Whether :meth:`open` was called."""
        return self._store is not None

    def open(self, facts: Mapping[str, str]) -> None:
        """Take the directory into use.

        Args:
            facts: all that the taps depend on but for the images: name → value, both for messages.

        Raises:
            CacheError: the directory holds a cache that was made for other facts, or none that can be read.
        """
        facts = {**facts, "model.teacher_cache.precision": self.precision, "the cache's format": _FORMAT}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # Ranks come here at about the same time: the first one makes or replaces it.
            with locked(self.directory):
                self._check(facts)
                self._store = TapStore(self.directory, limit=0)
        except OSError as error:
            raise CacheError(
                f"the teacher cache '{self.directory}' cannot be used ({error.strerror}: {error.filename})"
            ) from error
        room = max(0, int(self.limit_gib * 2**30) - self._store.size)
        self._store.limit = room // comm.get_world_size()

    def _check(self, facts: Mapping[str, str]) -> None:
        file = self.directory / "cache.json"
        problem = ""
        if file.exists():
            problem = _differences(_read_facts(file), facts)
            if not problem:
                return
        elif rows_exist(self.directory):
            problem = f"'{file}', which says what it was made for, is missing"
        if problem and not self.overwrite:
            raise CacheError(
                f"the teacher cache '{self.directory}' was made for something else: {problem}. Delete the folder, name "
                "another one (model.teacher_cache.directory), or set model.teacher_cache.overwrite=True"
            )
        remove_rows(self.directory)
        with atomic_write(file, "w") as handle:
            json.dump(dict(facts), handle, indent=1)

    def taps(
        self,
        inputs: Any,
        run_teacher: Callable[[Any], dict[str, TapValue]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> dict[str, TapValue]:
        """The taps of a batch.

        Args:
            inputs: the loader's batch.
            run_teacher: computes them for a batch, or for some of its images.
            device, dtype: where they are wanted, and the type of their numbers.

        Raises:
            CacheError: an image without a key, or other pixels than those that its entry was made from.
        """
        store = self._store
        if store is None:
            raise RuntimeError("TeacherCache.open comes before the first batch")
        keys, digests, sizes = _keys(inputs)
        if not all(key in store for key in keys):
            store.refresh()
        for key, digest in zip(keys, digests, strict=True):
            if key in store and store.digest(key) != digest:
                raise CacheError(
                    f"the teacher cache '{self.directory}' has image {key.image}, view {key.view}, made from other "
                    "pixels: the images, their augmentation, its seed or the decoder have changed since. Delete the "
                    "folder, or name another one (model.teacher_cache.directory)"
                )
        rows = [store.read(key) if key in store else None for key in keys]
        missing = [position for position, row in enumerate(rows) if row is None]
        self._asked += len(rows)
        self._found += len(rows) - len(missing)
        if missing:
            chosen = _with_padding(missing, sizes)
            computed = run_teacher(inputs if len(chosen) == len(rows) else _select(inputs, chosen))
            encoded = encode_rows(computed, getattr(torch, self.precision))
            of_missing = encoded[[chosen.index(position) for position in missing]]
            # Numbers that are not finite are the trainer's to report, and nothing to keep.
            if all_finite(computed):
                store.write([keys[i] for i in missing], [digests[i] for i in missing], of_missing)
            for position, row in zip(missing, of_missing, strict=True):
                rows[position] = row
        return decode_rows(_stacked(rows, device), device, dtype)

    def diagnostics(self) -> dict[str, float]:
        """Share of the images since the last call that were in the cache, and its size in GiB."""
        if self._store is None:
            return {}
        share = self._found / max(1, self._asked)
        self._asked = self._found = 0
        return {"teacher_cache/found": share, "teacher_cache/gib": self._store.size / 2**30}


def _read_facts(file: Path) -> dict[str, str]:
    try:
        facts = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CacheError(f"'{file}' cannot be read ({error}); delete the teacher cache's folder") from error
    return facts if isinstance(facts, dict) else {}


def _differences(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What differs, in words; "" if nothing does."""
    names = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
    texts = [f"{name} was {stored.get(name, 'absent')} and is {wanted.get(name, 'absent')}" for name in names]
    more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return "; ".join([*texts[:_SHOWN], *more])


def _keys(inputs: Any) -> tuple[list[RowKey], list[int], list[tuple[int, int]]]:
    """Key, digest and (height, width) of each image."""
    found: Sequence[Any] | None = None
    sizes = image_sizes(inputs)
    if sizes is not None:
        found = [item.get("view_key") for item in inputs]
    elif isinstance(inputs, LoadedBatch):
        found, images = inputs.view_keys, inputs.images
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
    if found is None or sizes is None or None in found:
        raise CacheError(
            "model.teacher_cache needs images that come back unchanged, and batches that tell which: set "
            "dataloader.train.views=1 (without random augmentation) or to the number of augmentations of an image"
        )
    height, width = (max(side) for side in zip(*sizes, strict=True))
    keys = [RowKey(image, view, height, width) for image, view, _ in found]
    return keys, [digest for _, _, digest in found], sizes


def _with_padding(missing: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Positions of images, those ``missing`` among them, that are padded to the same size as the whole batch is."""
    chosen = set(missing)
    for side in (0, 1):
        longest = max(range(len(sizes)), key=lambda position: sizes[position][side])
        if max(sizes[position][side] for position in chosen) < sizes[longest][side]:
            chosen.add(longest)
    return sorted(chosen)


def _select(inputs: Any, positions: Sequence[int]) -> Any:
    if isinstance(inputs, Sequence):
        return [inputs[position] for position in positions]
    return inputs.select(positions)


def _stacked(rows: Sequence[Tensor | None], device: torch.device) -> Tensor:
    present = [row for row in rows if row is not None]
    if len({len(row) for row in present}) > 1:
        raise CacheError(
            "the teacher's taps have other sizes for some images of this batch than for others of the same padded "
            "size: they depend on more than the image, so this teacher cannot be cached; remove model.teacher_cache"
        )
    # Pinned, so that the copy to the device is not waited for.
    stacked = torch.empty(len(present), len(present[0]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    return torch.stack(present, out=stacked)
