"""Commands in messages: as they can be typed where the user stands."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["command"]

_CHECKOUT = Path(__file__).resolve().parents[1]


def command(file: str) -> str:
    """How a command is started from here.

    Args:
        file: path of its script in the repository, e.g. "tools/replay_batch.py".

    Returns:
        ``python PATH`` with the path from the current directory; ``python -m mokd_det NAME`` where the package is
        installed without its repository.
    """
    path = _CHECKOUT / file
    # Other packages may have a folder of tools too.
    if path.is_file() and (_CHECKOUT / "mokd_det" / "command_hint.py").is_file():
        relative = os.path.relpath(path)
        return f"python {path if relative.startswith(os.pardir) else relative}"
    from mokd_det.__main__ import COMMANDS

    return f"python -m mokd_det {next(name for name, module in COMMANDS.items() if module == path.stem)}"
