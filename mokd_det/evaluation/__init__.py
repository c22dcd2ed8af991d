"""Evaluation: COCO metrics of detectors."""

from mokd_det.evaluation.coco import CocoDetectionEvaluator

__all__ = ["CocoDetectionEvaluator"]
