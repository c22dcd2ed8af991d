#!/usr/bin/env python
"""A small vision transformer of timm as a teacher of features, trained as a classifier on the bundled digits.

    python datasets/make_digits.py digits --train 12000 --test 1000
    python docs/make_digits_vit.py

No foundation model: it stands in for one where nothing can be downloaded. It learns to name the digit in the middle of
a window of 32 × 32 pixels from the training scenes of ``digits``, whose source digits are not those of the validation
and test scenes, and writes timm's folder (config.json, model.safetensors) for
:class:`mokd_det.modeling.FeatureTeacher`. Prints the accuracy on windows of the validation scenes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from timm.models import save_for_hf
from torch import Tensor
from torchvision.io import read_image

from mokd_det.data import datasets_root
from mokd_det.data.digits import annotation_file, image_folder
from mokd_det.errors import DatasetError
from mokd_det.exit_status import exit_status

SIDE, BATCH = 32, 128
ARCHITECTURE = "vit_tiny_patch16_224"
SETTINGS = dict(img_size=SIDE, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10)


class Windows:
    """The scenes of a split, padded by half a window, and the middle and class of every digit in them."""

    def __init__(self, folder: Path, split: str) -> None:
        coco = COCO(str(annotation_file(folder, split)))
        rows = {image: row for row, image in enumerate(sorted(coco.imgs))}
        scenes = [
            read_image(str(image_folder(folder, split) / coco.imgs[image]["file_name"])) for image in rows
        ]
        self.scenes = F.pad(torch.stack(scenes), [SIDE // 2] * 4)
        objects = list(coco.anns.values())
        self.scene = torch.tensor([rows[o["image_id"]] for o in objects])
        self.labels = torch.tensor([o["category_id"] - 1 for o in objects])
        x, y, width, height = torch.tensor([o["bbox"] for o in objects]).T
        self.middle = torch.stack((y + height / 2, x + width / 2), 1)

    def cut(self, chosen: Tensor, shift: int) -> Tensor:
        """Windows (n, 3, 32, 32) in -1..1 about the chosen digits, moved by up to ``shift`` pixels."""
        moved = (torch.rand(len(chosen), 2) * 2 - 1) * shift
        first = (self.middle[chosen] + moved).round().long().clamp(0, self.scenes.shape[-1] - SIDE)
        steps = torch.arange(SIDE)
        rows, columns = (first[:, axis, None] + steps for axis in (0, 1))
        scene = self.scene[chosen][:, None, None]
        pixels = self.scenes[scene, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        return pixels / 127.5 - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scenes", type=Path, default=Path(datasets_root()) / "digits")
    parser.add_argument("--output", type=Path, default=Path("pretrained/digits_vit"))
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    return exit_status(lambda: make_vit(args))


def make_vit(args: argparse.Namespace) -> None:
    """Train the ViT, print its accuracy and write its folder.

    Raises:
        DatasetError: the scenes have not been made.
    """
    for split in ("train", "val"):
        if not annotation_file(args.scenes, split).is_file():
            raise DatasetError(
                f"--scenes {args.scenes}: there is no {annotation_file(args.scenes, split)}; "
                "`python datasets/make_digits.py digits --train 12000 --test 1000` makes them"
            )
    torch.manual_seed(args.seed)
    data = Windows(args.scenes, "train")
    model = timm.create_model(ARCHITECTURE, **SETTINGS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.iterations, pct_start=0.1)
    for iteration in range(args.iterations):
        chosen = torch.randint(len(data.labels), (BATCH,))
        loss = F.cross_entropy(model(data.cut(chosen, shift=4)), data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if iteration % 100 == 99:
            print(f"{iteration + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()
    data = Windows(args.scenes, "val")
    with torch.no_grad():
        parts = torch.arange(len(data.labels)).split(BATCH)
        right = [model(data.cut(part, shift=0)).argmax(1) == data.labels[part] for part in parts]
    share = torch.cat(right).float().mean()
    print(f"accuracy on {len(data.labels)} windows of the validation scenes: {100 * share:.1f} %")
    model.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), input_size=(3, SIDE, SIDE))
    save_for_hf(model, str(args.output), model_args=SETTINGS, safe_serialization=True)


if __name__ == "__main__":
    sys.exit(main())
