"""Names of the bundled data sets, resolved as Detectron2 resolves its own: ``$DETECTRON2_DATASETS`` or ``datasets``."""

from __future__ import annotations

import os
from pathlib import Path

from mokd_det.command_hint import command
from mokd_det.data.coco_format import register_coco_format
from mokd_det.data.digits import KINDS, SPLITS, annotation_file, class_names, image_folder

__all__ = ["datasets_root", "register_digits"]


def datasets_root() -> Path:
    """Folder of all data sets: the environment variable ``DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_digits(root: str | os.PathLike[str]) -> None:
    """Register ``digits_train``, ``digits_val``, ``digits_test`` and the other kinds' splits under ``root``."""
    for kind in KINDS:
        for split in SPLITS:
            folder = Path(root) / kind
            register_coco_format(
                f"{kind}_{split}",
                annotation_file(folder, split),
                image_folder(folder, split),
                thing_classes=class_names(kind),
                hint=f"generate it with: {command('datasets/make_digits.py')} {kind}",
            )


register_digits(datasets_root())
