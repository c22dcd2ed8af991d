"""Small Hugging Face detectors from random weights on ``digits_few``: minutes on a CPU (docs/transformers.md)."""

from typing import Any

from detectron2.config import LazyCall as L

from mokd_det.modeling import TransformersDetector

from ..common.objectives import alone, mokd_transformers
from ..quickstart.common import dataloader, lr_multiplier, optimizer, train


def detector(kind: str, width: int, layers: int, levels: int = 2, **more: Any) -> Any:
    """A relative of RT-DETR for 64 pixels: maps of strides 8, 16, … of ``width`` channels, ``layers`` to decode."""
    backbone = dict(
        model_type="resnet",
        layer_type="basic",
        embedding_size=width // 2,
        hidden_sizes=[width // 2] + [width] * levels,
        depths=[1] * (levels + 1),
        out_features=["stage2", "stage3", "stage4"][:levels],
    )
    source = dict(
        model_type=kind,
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # the backbone learns from scratch too
        feat_strides=[8, 16, 32][:levels],
        num_feature_levels=levels,
        encoder_in_channels=[width] * levels,
        encoder_hidden_dim=width,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=4,
        encode_proj_layers=[levels - 1],
        hidden_expansion=0.5,
        d_model=width,
        decoder_in_channels=[width] * levels,
        decoder_ffn_dim=2 * width,
        decoder_layers=layers,
        decoder_attention_heads=4,
        **{"num_queries": 16, "num_denoising": 6, **more},
    )
    return L(TransformersDetector)(source=source, class_names=["0", "1", "2"], image_size=64)


def pretrained(name: str) -> Any:
    """The detector that ``pretrain_<name>.py`` trained, with class heads for the three digits of ``digits_few``."""
    source = f"output/transformers_digits/pretrain_{name}/student_final"
    return L(TransformersDetector)(
        source=source, class_names=["0", "1", "2"], on_class_mismatch="reinit", image_size=64
    )


d_fine = detector("d_fine", 32, 2, depth_mult=0.34)
d_fine_large = detector("d_fine", 64, 3, depth_mult=0.34)
rt_detr_v2 = detector("rt_detr_v2", 32, 2, decoder_n_levels=2)

dataloader.train.dataset = "digits_few_train"
dataloader.train.total_batch_size = 8
dataloader.test.dataset = "digits_few_val"

objectives, balancer = dict(task=mokd_transformers.objectives.task), alone.balancer
train.max_iter = 600
train.eval_period = 100
train.conflict_period = train.diagnostics_period = 0
