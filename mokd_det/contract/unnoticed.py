"""Definitions that would have no effect."""

from __future__ import annotations

from typing import Any

from mokd_det.errors import ConfigError

__all__ = ["refuse_unnoticed"]


def refuse_unnoticed(value: Any, contract: type, plain: type) -> None:
    """Refuse an object that is outside of a contract but defines a part of it, which nobody would ask it for.

    Args:
        value: of a class that does not derive from ``contract``.
        contract: the class with the defaults.
        plain: stands for such objects; what it defines itself it asks them for.

    Raises:
        ConfigError: the message names the part.
    """
    own = {name for name, part in vars(contract).items() if callable(part) or isinstance(part, property)}
    found = sorted(
        name
        for name in own - vars(plain).keys()
        if not name.startswith("_") and (hasattr(type(value), name) or name in getattr(value, "__dict__", ()))
    )
    if found:
        kind = type(value).__name__
        raise ConfigError(
            f"{kind} defines {found[0]}, which is asked of a mokd_det.contract.{contract.__name__} only: write "
            f"`class {kind}({contract.__name__})`"
        )
