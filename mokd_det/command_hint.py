"""Commands in messages: as they can be typed where the user stands."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["command"]

_CHECKOUT = Path(__file__).resolve().parents[1]


def command(file: str) -> str:
    """How a script of the repository is started from here.

    Args:
        file: its path in the repository, e.g. "tools/replay_batch.py".

    Returns:
        ``python PATH`` with the path from the current directory; ``python -m mokd_det NAME`` where the package is
        installed without its repository but has the command; else the script's place in words.
    """
    path = _CHECKOUT / file
    # Other packages may have a folder of tools too.
    if path.is_file() and (_CHECKOUT / "mokd_det" / "command_hint.py").is_file():
        relative = os.path.relpath(path)
        return f"python {path if relative.startswith(os.pardir) else relative}"
    from mokd_det.__main__ import COMMANDS

    names = {module: name for name, module in COMMANDS.items()}
    if path.stem in names:
        return f"python -m mokd_det {names[path.stem]}"
    return f"python {file} (of the repository)"
