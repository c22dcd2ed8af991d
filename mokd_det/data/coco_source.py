"""Where a COCO-format data set lies, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mokd_det.errors import ConfigError

__all__ = ["BadBoxPolicy", "CocoFormatSource"]

BadBoxPolicy = Literal["error", "drop"]


@dataclass(frozen=True)
class CocoFormatSource:
    """A COCO-format data set's files, and what is forgiven in them.

    Attributes:
        name: the data set's name in Detectron2's catalogs; None: the metadata is left alone.
        json_file: annotations in COCO's detection format.
        image_root: folder that the file's ``file_name`` entries are relative to; None: image files are not looked for.
        on_bad_box: what happens to a box without area inside its image: "error" names it, "drop" leaves it
            out.
        has_annotations: False for files that list images only (COCO's test sets).
        unique_annotation_ids: False tolerates repeated annotation ids.
        hint: a sentence for the error about a missing file: how to get the data.
    """

    name: str | None
    json_file: str
    image_root: str | None
    on_bad_box: BadBoxPolicy = "error"
    has_annotations: bool = True
    unique_annotation_ids: bool = True
    hint: str = ""

    def __post_init__(self) -> None:
        if self.on_bad_box not in ("error", "drop"):
            raise ConfigError(f"on_bad_box={self.on_bad_box!r}: must be 'error' or 'drop'")
