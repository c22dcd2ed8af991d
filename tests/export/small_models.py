"""Small detectors whose predictions are as varied as those of trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from mokd_det.config import load_config
from mokd_det.data import digits
from mokd_det.data.image_file import read_image
from mokd_det.engine.inference_model import student_section
from mokd_det.modeling import EPFF, DeformableTransformer, ViDT
from mokd_det.modeling.backbone import SwinRAM

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "configs" / "quickstart" / "student.py"
MOKD = ROOT / "configs" / "quickstart" / "mokd.py"


def varied(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with random numbers in every layer that starts at a constant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(
                part in name
                for part in ("class_embed", "bbox_embed", "sampling_offsets", "attention_weights")
            ):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def from_config(path: Path = STUDENT) -> nn.Module:
    """The student of a configuration, varied."""
    torch.manual_seed(0)
    return varied(instantiate(student_section(load_config(path, [], training=False)).copy()))


def vidt_plus() -> ViDT:
    """A small ViDT+: pyramid fusion, IoU head, ViDT's own patch embedding, windows of 7 cells, shifted ones too."""
    torch.manual_seed(1)
    backbone = SwinRAM(
        embed_dim=16, depths=(2, 2, 1, 2), num_heads=(2, 2, 4, 4), num_det_tokens=12, pos_channels=64
    )
    transformer = DeformableTransformer(embed_dim=64, num_heads=4, ffn_dim=64, num_layers=2, token_classes=6)
    return varied(
        ViDT(backbone=backbone, neck=EPFF(16), transformer=transformer, num_classes=5, iou_head=True, topk=20)
    )


def digit_images(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Scenes of digits as files have them, each cut to a (height, width) of at most 64; uint8 (3, H, W), RGB."""
    root = folder / "digits"
    if not root.exists():
        digits.generate("digits", folder, counts={"train": 8, "val": 1, "test": 1})
    files = sorted(digits.image_folder(root, "train").glob("*.png"))
    images = [torch.tensor(read_image(str(file), file.name)).permute(2, 0, 1) for file in files]
    return [
        images[i % len(images)][:, :height, :width].contiguous() for i, (height, width) in enumerate(sizes)
    ]
