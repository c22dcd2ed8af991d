"""Feature maps of two models that pad the same batch differently, brought to the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mokd_det.distillation.context import Objects
from mokd_det.distillation.taps import Taps, TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap

__all__ = ["align_maps", "image_sizes", "stretched_objects"]

LARGEST_PADDING = 128
"""Models pad a batch to a multiple of at most so many pixels; a larger map has another cause."""

ImageSizes = Sequence[tuple[int, int]]


def image_sizes(batched_inputs: object) -> list[tuple[int, int]] | None:
    """(height, width) of the images of Detectron2's batch; None for a batch of another kind."""
    if not isinstance(batched_inputs, Sequence) or not batched_inputs:
        return None
    sizes = []
    for item in batched_inputs:
        image = item.get("image") if isinstance(item, Mapping) else None
        if not isinstance(image, Tensor) or image.ndim != 3:
            return None
        sizes.append((int(image.shape[1]), int(image.shape[2])))
    return sizes


def align_maps(
    student: Taps, teacher: Taps, sizes: ImageSizes
) -> tuple[dict[str, TapValue], dict[str, TapValue]]:
    """Crop maps of equal stride to the cells that both models have, and tell which of them are padding.

    Both models put an image at the top left of its batch and pad at the right and at the bottom, so cell (i, j) of
    both shows the same pixels, and a map is longer only by cells of padding: cutting these off is exact, where
    interpolation would shift cells. Maps that come without a padding mask (those of foreign models) get one
    from the sizes of the images. Tokens stay as they are.

    Args:
        student, teacher: the taps; those of the teacher are found by name and stride.
        sizes: (height, width) of each image, in pixels of the batch.

    Raises:
        IncompatibleModelsError: maps whose sizes differ by more than padding; the message has both shapes.
    """
    aligned_s, aligned_t = dict(student), dict(teacher)
    for name, maps_s in student.items():
        maps_t = teacher[name]
        if not isinstance(maps_s, list) or not isinstance(maps_t, list):
            continue
        by_stride = {level.stride: level for level in maps_t}
        pairs = [_align(name, level, by_stride[level.stride], sizes) for level in maps_s]
        aligned_s[name], aligned_t[name] = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return aligned_s, aligned_t


def stretched_objects(objects: Objects, student: Taps) -> Objects:
    """The objects where the student's maps show them, if it resized its images itself."""
    maps = (value for value in student.values() if isinstance(value, list))
    level = next((level for value in maps for level in value if level.stretched), None)
    if level is None:
        return objects
    height, width = (int(cells) * level.stride for cells in level.tensor.shape[2:])
    boxes = tuple(
        box * box.new_tensor([width / w, height / h] * 2)
        for box, (h, w) in zip(objects.boxes, objects.sizes, strict=True)
    )
    return Objects(boxes, objects.classes, ((height, width),) * len(boxes))


def _align(
    name: str, student: FeatureMap, teacher: FeatureMap, sizes: ImageSizes
) -> tuple[FeatureMap, FeatureMap]:
    shape_s, shape_t = tuple(student.tensor.shape), tuple(teacher.tensor.shape)
    largest = tuple(max(side) for side in zip(*sizes, strict=True))
    if student.stretched != teacher.stretched:
        who = "student" if student.stretched else "teacher"
        raise IncompatibleModelsError(
            f"tap {name!r}, stride {student.stride}: the {who} resizes its images itself and the other model does not, "
            f"so their maps of shape {shape_s} (student) and {shape_t} (teacher) show other pixels; give both one "
            f"image_size, or resize in the mapper to what both take"
        )
    stretched = student.stretched
    plausible = not stretched and all(
        _covers(cells, side, student.stride)
        for shape in (shape_s, shape_t)
        for cells, side in zip(shape[2:], largest, strict=True)
    )
    if shape_s[2:] != shape_t[2:]:
        if not plausible or shape_s[0] != shape_t[0]:
            raise IncompatibleModelsError(
                f"tap {name!r}, stride {student.stride}: map of shape {shape_s} in the student and {shape_t} in the "
                f"teacher, for images of up to {largest[0]} × {largest[1]} pixels; they differ by more than padding "
                f"(does a model resize its input, or is a stride wrong?)"
            )
        height, width = (min(pair) for pair in zip(shape_s[2:], shape_t[2:], strict=True))
        student, teacher = (_crop(level, height, width) for level in (student, teacher))
    # Of images that a model resizes only that model knows the padding.
    if plausible and len(sizes) == shape_s[0]:
        return _masked(student, sizes), _masked(teacher, sizes)
    return student, teacher


def _covers(cells: int, side: int, stride: int) -> bool:
    """Whether ``cells`` show all of ``side`` pixels (but for a rest below one cell) and else only padding."""
    padded = -(-side // LARGEST_PADDING) * LARGEST_PADDING
    return side // stride <= cells <= -(-padded // stride)


def _crop(level: FeatureMap, height: int, width: int) -> FeatureMap:
    mask = None if level.padding_mask is None else level.padding_mask[:, :height, :width]
    return replace(level, tensor=level.tensor[:, :, :height, :width], padding_mask=mask)


def _masked(level: FeatureMap, sizes: ImageSizes) -> FeatureMap:
    height, width = level.tensor.shape[2:]
    shortest = [min(side) for side in zip(*sizes, strict=True)]
    ends = ((height - 1) * level.stride, (width - 1) * level.stride)
    if level.padding_mask is not None or all(end < side for end, side in zip(ends, shortest, strict=True)):
        return level
    starts_y, starts_x = (torch.arange(cells) * level.stride for cells in (height, width))
    extent = torch.tensor(sizes)
    padding = (starts_y >= extent[:, :1])[:, :, None] | (starts_x >= extent[:, 1:])[:, None, :]
    return replace(level, padding_mask=padding.to(level.tensor.device, non_blocking=True))
