"""What a detector's AP is lost to: TIDE's error types, by tidecv (Bolya et al., ECCV 2020).

All numbers are tidecv's own. What is done around it:

- Boxes go in through its ``Data`` class. Its own reader of COCO files demands masks (KeyError 'segmentation' on
  files with boxes only) and drops detections of images that the file does not list without a word.
- Its ``TIDERun`` is used without its ``TIDE`` class, which would restyle all of matplotlib and write to the user's
  home directory. With that, tidecv 1.0.1 needs no patch for NumPy 2.
- It keeps the 100 best detections of an image, of all classes together, unless told otherwise: the truth itself
  then gets AP 67 on images with 150 objects. Here all detections count, and :class:`TideReport` says what the
  limit would have changed. (COCO's limit is 100 per image *and class*.)
- It divides by zero when a detector has found nothing at all; that case is filled in by what it tends to.
- It counts a class that has detections but no true box as AP 0, where COCO leaves the class out; the report has
  both figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidecv.data import Data
from tidecv.quantify import TIDE, TIDERun

from mokd_det.data.truth import Truth
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.detection_file import Detections

__all__ = [
    "ERROR_TYPES",
    "SPECIAL_TYPES",
    "TIDECV_LIMIT",
    "TideErrors",
    "TideReport",
    "run_tide",
    "to_tidecv",
]

ERROR_TYPES: Mapping[str, str] = {
    "Cls": "right place, wrong class",
    "Loc": "right class, wrong place",
    "Both": "wrong class and wrong place",
    "Dupe": "found again",
    "Bkg": "nothing there",
    "Miss": "not found at all",
}
"""tidecv's short name → what it means; each detection that is wrong has exactly one of the first five."""

SPECIAL_TYPES: Mapping[str, str] = {
    "FalsePos": "all that is wrong",
    "FalseNeg": "all that is not found",
}

TIDECV_LIMIT = 100
"""Detections per image, of all classes together, that tidecv keeps unless told otherwise."""


@dataclass(frozen=True)
class TideErrors:
    """One detector at one threshold.

    Attributes:
        threshold: IoU from which a detection of the right class is right.
        background: IoU below which a detection has hit nothing.
        ap: percent; mean over the classes with a detection or a true box, tidecv's figure.
        ap_of_true_classes: percent; mean over the classes with a true box, COCO's figure.
        dap: error type → AP points that would be won if errors of this type alone were mended.
        counts: error type → how many there are, without detections in crowd regions.
    """

    threshold: float
    background: float
    ap: float
    ap_of_true_classes: float
    dap: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def classification_share(self) -> float | None:
        """Cls / (Cls + Loc): how much of what these two lose is lost to the class; None if nothing is lost."""
        lost = self.dap["Cls"] + self.dap["Loc"]
        return self.dap["Cls"] / lost if lost > 0 else None


@dataclass(frozen=True)
class TideReport:
    """One detector at the chosen thresholds.

    Attributes:
        name: the detector.
        errors: by threshold, in the order asked for.
        limit: detections per image that counted; None: all.
        most_detections: in any image, before the limit.
        crowded_images: how many images have more than tidecv's 100 detections.
        ap_with_tidecv_limit: what ``ap`` would be with tidecv's limit, by threshold; empty if it is equal.
        images_beyond_detector: how many images have more true boxes than any image has detections.
        classes_without_truth: names of the classes that have detections but no true box.
    """

    name: str
    errors: Sequence[TideErrors]
    limit: int | None
    most_detections: int
    crowded_images: int
    ap_with_tidecv_limit: Sequence[float]
    images_beyond_detector: int
    classes_without_truth: Sequence[str]

    def notes(self) -> list[str]:
        """What a reader of the numbers must know, as sentences."""
        said = []
        if self.crowded_images and self.limit is None:
            with_limit = ", ".join(
                f"{limited:.1f} instead of {errors.ap:.1f} at {errors.threshold:g}"
                for limited, errors in zip(self.ap_with_tidecv_limit, self.errors)
            )
            said.append(
                f"{self.name}: {self.crowded_images} images have more than {TIDECV_LIMIT} detections (up to "
                f"{self.most_detections}). All of them count here; tidecv by itself keeps {TIDECV_LIMIT} per image, "
                f"of all classes together, without saying so, and would give AP {with_limit}."
            )
        elif self.limit is not None and self.most_detections > self.limit:
            said.append(
                f"{self.name}: only the {self.limit} best detections of an image count, of up to "
                f"{self.most_detections}: AP and dAP are not those of the whole output."
            )
        if self.images_beyond_detector:
            said.append(
                f"{self.name}: {self.images_beyond_detector} images have more true boxes than any image has detections "
                f"({self.most_detections}); a limit of the detector makes some of its misses unavoidable."
            )
        if self.classes_without_truth:
            count = len(self.classes_without_truth)
            names = ", ".join(self.classes_without_truth[:5]) + " …" * (count > 5)
            aps = ", ".join(f"{one.ap_of_true_classes:.1f} at {one.threshold:g}" for one in self.errors)
            said.append(
                f"{self.name}: {count} classes have detections but no true box ({names}). "
                f"TIDE counts them as AP 0; without them, as COCO reckons, AP is {aps}."
            )
        return said


def run_tide(
    truth: Truth,
    detections: Detections,
    *,
    thresholds: Sequence[float] = (0.5,),
    background: float = 0.1,
    limit: int | None = None,
) -> TideReport:
    """Run TIDE on one detector.

    Crowd regions are treated as COCO does: they need not be found, and detections of their class that lie in them
    (intersection over the *detection's* area) are neither right nor wrong.

    Args:
        truth: annotations.
        detections: their ids occur in the truth (:func:`mokd_det.evaluation.detection_file.match_ids`).
        thresholds: IoUs in (0, 1), each above ``background``.
        background: IoU in [0, 1).
        limit: detections per image that count, the best ones, of all classes together; None: all.

    Raises:
        ConfigError: a threshold or limit that makes no sense.
        DatasetError: there is no true box to judge by.
    """
    if not thresholds or len(set(thresholds)) != len(thresholds):
        raise ConfigError(f"thresholds {list(thresholds)}: must be one or more different numbers")
    for threshold in thresholds:
        if not 0.0 <= background < threshold < 1.0:
            raise ConfigError(
                f"threshold {threshold:g} with background {background:g}: must be 0 <= background < threshold < 1"
            )
    if limit is not None and limit < 1:
        raise ConfigError(f"{limit} detections per image: must be 1 or more")
    if truth.crowd.all():
        raise DatasetError(f"{truth.name} has no true box that is no crowd: nothing can be judged by it")
    per_image = Counter(detections.image_ids.tolist())
    most = max(per_image.values(), default=0)
    crowded = sum(count > TIDECV_LIMIT for count in per_image.values())
    objects = Counter(truth.image_ids[~truth.crowd].tolist())
    kept = max(most, 1) if limit is None else limit

    def run(threshold: float, limit: int, run_errors: bool = True) -> TIDERun:
        # tidecv writes into what it is given, so each run gets its own.
        data = to_tidecv(truth, detections)
        return TIDERun(*data, threshold, background, TIDE.BOX, limit, run_errors=run_errors)

    errors = [_errors(run(threshold, kept)) for threshold in thresholds]
    limited: list[float] = []
    if crowded and limit is None:
        limited = [float(run(threshold, TIDECV_LIMIT, run_errors=False).ap) for threshold in thresholds]
    true_classes = set(truth.category_ids[~truth.crowd].tolist())
    without = sorted(set(detections.category_ids.tolist()) - true_classes)
    return TideReport(
        detections.name,
        errors,
        limit,
        most,
        crowded,
        limited,
        sum(count > most for count in objects.values()) if most else 0,
        [truth.class_names[id_] for id_ in without],
    )


def to_tidecv(truth: Truth, detections: Detections) -> tuple[Data, Data]:
    """The truth and the detections as tidecv's own objects, every image and class registered."""
    true, found = Data(truth.name), Data(detections.name)
    for id_, name in truth.class_names.items():
        true.add_class(id_, name)
    # Only images that the truth lists are judged: those without a box must be there too.
    for id_, name in truth.image_names.items():
        true.add_image(id_, name)
    for image, category, box, crowd in zip(
        truth.image_ids.tolist(), truth.category_ids.tolist(), truth.boxes.tolist(), truth.crowd.tolist()
    ):
        (true.add_ignore_region if crowd else true.add_ground_truth)(image, category, box)
    for image, category, box, score in zip(
        detections.image_ids.tolist(),
        detections.category_ids.tolist(),
        detections.boxes.tolist(),
        detections.scores.tolist(),
    ):
        found.add_detection(image, category, score, box)
    return true, found


def _errors(run: TIDERun) -> TideErrors:
    lost = 100.0 - float(run.ap)
    try:
        main = {error.short_name: float(value) for error, value in run.fix_main_errors().items()}
    except ZeroDivisionError:
        # Without the missed boxes nothing is left to take a mean over: they are all that is wrong.
        main = {name: lost if name == "Miss" else 0.0 for name in ERROR_TYPES}
    try:
        special = {error.short_name: float(value) for error, value in run.fix_special_errors().items()}
    except ZeroDivisionError:
        special = {"FalsePos": 0.0, "FalseNeg": lost}
    # A detection in a crowd region that is no hit counts for nothing; tidecv lists it among the errors all the same.
    real = [error for error in run.errors if not hasattr(error, "pred") or error.pred["used"] is not None]
    counts = Counter(error.short_name for error in real)
    with_truth = [obj.get_ap() for obj in run.ap_data.objs.values() if obj.num_gt_positives > 0]
    return TideErrors(
        run.pos_thresh,
        run.bg_thresh,
        float(run.ap),
        sum(with_truth) / len(with_truth),
        {**main, **special},
        {name: counts.get(name, 0) for name in ERROR_TYPES},
    )
