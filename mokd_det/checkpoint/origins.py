"""Where the weights come from that the shipped configurations name: the answer to "does not exist"."""

from __future__ import annotations

import os
import re

__all__ = ["origin_of"]

_ORIGINS = (
    (
        r"vidt_(nano|tiny|small|base)\w*\.pth",
        "an official ViDT: https://github.com/naver-ai/vidt, its table of models",
    ),
    (
        r"swin_nano_\w+\.pth",
        "ImageNet weights by ViDT's authors: https://github.com/naver-ai/vidt, its table of backbones",
    ),
    (
        r"swin_(tiny|small|base)_\w+\.pth",
        "Microsoft's ImageNet weights: https://github.com/microsoft/Swin-Transformer, its table of models",
    ),
    (
        r"(?P<name>\w+\.(deit|fb|fb_dist)_in1k)\.safetensors",
        "timm's weights, model.safetensors of https://huggingface.co/timm/{name}",
    ),
    (
        r"\w+_vanilla/ckpt_epoch_240\.pth",
        "published with mdistiller: https://github.com/megvii-research/mdistiller, cifar_teachers.tar of its releases",
    ),
    (
        r"(retinanet|faster_rcnn)_R_50_FPN_1x\.pth",
        "Detectron2's model zoo; docs/methods.md has the command that converts its file",
    ),
)
_OWN = re.compile(r"(student_final(_ema)?|model_(final|best|\d{7}))\.(pth|safetensors)")


def origin_of(path: str | os.PathLike[str]) -> str:
    """A clause that says where to get a file of this name; "" if nothing is known of it."""
    name = os.fspath(path).replace(os.sep, "/")
    if _OWN.fullmatch(name.rsplit("/", 1)[-1]):
        folder = os.path.dirname(name) or "."
        return f"the training with train.output_dir={folder} writes it: run that first"
    for pattern, origin in _ORIGINS:
        found = re.search(rf"(^|/){pattern}$", name)
        if found:
            return f"{origin.format(**found.groupdict())} (docs/checkpoints.md)"
    return ""
