"""Image classification on the same trainer, methods and balancers as detection."""

from mokd_det.classification.batch import ClassificationBatch

__all__ = ["ClassificationBatch"]
