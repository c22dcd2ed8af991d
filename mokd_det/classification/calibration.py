"""Expected calibration error: how far a classifier's confidence is from how often it is right."""

from __future__ import annotations

import numpy as np

__all__ = ["expected_calibration_error"]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    r"""Mean gap between accuracy and confidence (Guo et al., ICML 2017, equation 3).

    The interval (0, 1] is divided into M bins ((m - 1) / M, m / M] of equal width; B_m are the samples whose
    confidence lies in bin m (a confidence of 0 in the first). With n samples,

        ECE = Σ_m |B_m| / n · |acc(B_m) - conf(B_m)|,

    acc(B_m) being the share of B_m that is classified correctly, conf(B_m) the mean confidence in it.

    Args:
        confidence: (n,), the probability that the model gives its prediction, 0 to 1.
        correct: (n,) bool, whether the prediction is right.
        bins: M.

    Returns:
        0 to 1; NaN without samples.
    """
    if len(confidence) == 0:
        return float("nan")
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Bin m has the edges m and m + 1; side "left" puts a value that equals an edge into the bin below it.
    member = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(member, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
