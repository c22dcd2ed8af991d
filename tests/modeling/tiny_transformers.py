"""The smallest models of every Hugging Face detector family: configurations as plain dicts, random weights."""

from __future__ import annotations

from typing import Any

LABELS = {0: "cat", 1: "dog", 2: "bird"}
"""The classes of every tiny model."""

_CLASSES = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}


def _resnet(*stages: int) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": [f"stage{stage}" for stage in stages],
    }


_RT_DETR = {
    "backbone_config": _resnet(2, 3, 4),
    "encoder_in_channels": [8, 16, 16],
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 9,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_n_points": 2,
    "num_denoising": 6,
    "hidden_expansion": 0.5,
}

_DETR = {
    "backbone_config": _resnet(4),
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
    "auxiliary_loss": True,
}

_GROUPED = {
    "d_model": 16,
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_n_points": 2,
    "num_queries": 6,
    "group_detr": 2,
    "c2f_num_blocks": 1,
}

_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

TINY: dict[str, dict[str, Any]] = {
    "RTDetrForObjectDetection": {"model_type": "rt_detr", **_RT_DETR},
    "RTDetrV2ForObjectDetection": {"model_type": "rt_detr_v2", **_RT_DETR},
    "DFineForObjectDetection": {"model_type": "d_fine", **_RT_DETR, "num_queries": 8, "decoder_layers": 3},
    "Deimv2ForObjectDetection": {"model_type": "deimv2", **_RT_DETR, "num_queries": 10},
    "DetrForObjectDetection": {"model_type": "detr", **_DETR},
    "TableTransformerForObjectDetection": {"model_type": "table-transformer", **_DETR},
    "ConditionalDetrForObjectDetection": {"model_type": "conditional_detr", **_DETR},
    "DabDetrForObjectDetection": {
        "model_type": "dab-detr",
        **{key: value for key, value in _DETR.items() if key != "d_model"},
        "hidden_size": 32,
    },
    "DeformableDetrForObjectDetection": {
        "model_type": "deformable_detr",
        **_DETR,
        "backbone_config": _resnet(2, 3, 4),
        "num_feature_levels": 4,
        "encoder_n_points": 2,
        "decoder_n_points": 2,
    },
    "LwDetrForObjectDetection": {
        "model_type": "lw_detr",
        **_GROUPED,
        "projector_scale_factors": [2.0, 0.5],
        "backbone_config": {
            "model_type": "lw_detr_vit",
            **_VIT,
            "image_size": 64,
            "pretrain_image_size": 64,
            "num_windows": 4,
            "window_block_indices": [0],
            "out_indices": [1, 2],
        },
    },
    "RfDetrForObjectDetection": {
        "model_type": "rf_detr",
        **_GROUPED,
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            **_VIT,
            "image_size": 64,
            "patch_size": 16,
            "num_windows": 2,
            "out_indices": [1, 2],
        },
    },
    "YolosForObjectDetection": {
        "model_type": "yolos",
        **_VIT,
        "intermediate_size": 16,
        "image_size": [64, 64],
        "patch_size": 16,
        "num_detection_tokens": 5,
        "use_mid_position_embeddings": False,
    },
}
"""Name of the class → configuration, without classes."""


def tiny_config(name: str, **changes: Any) -> dict[str, Any]:
    """The configuration of one class, with :data:`LABELS`, for ``TransformersDetector(source=...)``."""
    return {**TINY[name], **_CLASSES, **changes}
