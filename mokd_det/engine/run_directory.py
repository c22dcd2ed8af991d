"""The output directory of a run: nothing of an earlier run is lost in it, and nothing of one is mixed into another."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from mokd_det.checkpoint.atomic_file import atomic_write

__all__ = ["drop_metrics_from", "earlier_products", "set_aside_previous_run"]

logger = logging.getLogger(__name__)

_PRODUCTS = (
    "model_*.pth",
    "last_checkpoint",
    "student_final*.pth",
    "metrics.json",
    "results.json",
    "best",
    "bad_batches",
    "events.out.tfevents.*",
)


def earlier_products(directory: Path) -> list[Path]:
    """What an earlier run has left in its output directory."""
    return sorted({item for pattern in _PRODUCTS for item in directory.glob(pattern)})


def set_aside_previous_run(output_dir: str) -> Path | None:
    """Move what an earlier run left in ``output_dir`` into ``<output_dir>/previous_<n>``.

    A new run that is interrupted before its first checkpoint would otherwise resume from the old run's.

    Returns:
        The folder; None if there was nothing to move.
    """
    directory = Path(output_dir)
    leftovers = earlier_products(directory)
    if not leftovers:
        return None
    number = 1
    while (directory / f"previous_{number}").exists():
        number += 1
    target = directory / f"previous_{number}"
    target.mkdir()
    for item in leftovers:
        shutil.move(str(item), str(target / item.name))
    logger.warning(
        "%s held an earlier run, which is now in %s; --resume would have continued it", directory, target
    )
    return target


def drop_metrics_from(output_dir: str, iteration: int) -> None:
    """Remove the lines of ``metrics.json`` from ``iteration`` on: the resumed run writes them again.

    The evaluation at the end of a finished run stands under the number of its iterations and is kept, as a
    longer run that continues it does not repeat it.
    """
    path = Path(output_dir) / "metrics.json"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            if entry["iteration"] < iteration or (
                entry["iteration"] == iteration and "total_loss" not in entry
            ):
                kept.append(line)
        # The line that was being written when the run was killed.
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with atomic_write(path, "w") as handle:
        handle.writelines(line + "\n" for line in kept)
