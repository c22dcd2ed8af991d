"""One record of a data set to one input of a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from mokd_det.data.boxes import annotation_boxes
from mokd_det.data.image_file import check_decoder, read_image_of
from mokd_det.data.transforms import detr_test_augmentation, detr_train_augmentation

__all__ = ["DetrDatasetMapper"]


class DetrDatasetMapper:
    """Reads an image, augments it with its boxes, and builds Detectron2's model input.

    Grayscale, palette and CMYK files become RGB, and the EXIF orientation is applied, as Detectron2 does.
    Crowd annotations are left out; boxes are clipped to the augmented image, and those without area left are
    dropped (a crop may remove all of them: the image then trains as background).
    """

    def __init__(
        self,
        is_train: bool,
        augmentation: Sequence[T.Augmentation] | None = None,
        *,
        decoder: str = "pil",
    ) -> None:
        """
        Args:
            is_train: add ``instances`` to the output; without it annotations are ignored.
            augmentation: applied in order; None: ViDT's for COCO (:func:`~mokd_det.data.detr_train_augmentation`,
                :func:`~mokd_det.data.detr_test_augmentation`); an empty list: none.
            decoder: of JPEG files, see :func:`~mokd_det.data.image_file.read_image`.

        Raises:
            ConfigError: an unknown decoder.
        """
        check_decoder(decoder)
        if augmentation is None:
            augmentation = detr_train_augmentation() if is_train else detr_test_augmentation()
        self.is_train = is_train
        self.decoder = decoder
        self.augmentation = T.AugmentationList(list(augmentation))

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A standard dict, which is not modified, as the model's input.

        Returns:
            The record without ``annotations``, with ``image`` (uint8 tensor (3, H, W), RGB) and, for
            training, ``instances`` (``gt_boxes`` absolute xyxy float32 in the augmented image, ``gt_classes``
            int64). ``height`` and ``width`` stay those of the original image.

        Raises:
            DatasetError: an image that is missing, cannot be decoded or has another size than the record says.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}
        image = read_image_of(sample, self.decoder)
        annotations = record.get("annotations", ()) if self.is_train else ()
        annotations = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        aug_input = T.AugInput(image, boxes=annotation_boxes(annotations))
        self.augmentation(aug_input)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if self.is_train:
            shape = aug_input.image.shape[:2]
            instances = Instances(shape)
            instances.gt_boxes = Boxes(torch.as_tensor(aug_input.boxes, dtype=torch.float32))
            instances.gt_boxes.clip(shape)
            instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
            sample["instances"] = instances[instances.gt_boxes.nonempty()]
        return sample
