"""The errors that a user can cause, each with a message that names the culprit and says what would be right.

Tools turn every :class:`MoKDError` into one line on stderr and exit status 2; anything else is a bug and keeps
its traceback.
"""

from typing import get_args

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "ExportError",
    "IncompatibleModelsError",
    "InvalidLossError",
    "InvalidNumberError",
    "MachineError",
    "MoKDError",
    "first_line",
    "require_choice",
]


class MoKDError(Exception):
    """Base of every error that is caused by the input and not by this package."""


class ConfigError(MoKDError, ValueError):
    """A configuration key or value that does not exist, has the wrong type or contradicts another one."""


class DatasetError(MoKDError, ValueError):
    """A data set file, image, annotation or category that cannot be used."""


class CacheError(MoKDError, RuntimeError):
    """A teacher cache that was made for something else, or that cannot hold what it is asked to."""


class CheckpointError(MoKDError, RuntimeError):
    """A checkpoint that is missing, broken, unsafe or made for another model."""


class ExportError(MoKDError, RuntimeError):
    """A model that cannot be written in the form asked for, or that would compute something else in it."""


class IncompatibleModelsError(MoKDError, ValueError):
    """A teacher and a student whose taps cannot be compared."""


class InvalidNumberError(MoKDError, FloatingPointError):
    """A number that training cannot go on with: NaN or infinity in an image, a teacher's tap or a gradient."""


class InvalidLossError(InvalidNumberError):
    """A loss that is NaN, infinite or negative where its logarithm is needed."""


class MachineError(MoKDError, RuntimeError):
    """Something the machine took away: a process that loads data, space on the disk."""


def first_line(error: BaseException) -> str:
    """What a message quotes of another error: the first line of its text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_choice(argument: str, value: str, choices: object) -> None:
    """Raise a ConfigError unless ``value`` is one of the strings of the Literal type ``choices``."""
    if value not in get_args(choices):
        raise ConfigError(f"{argument}={value!r} is not one of {', '.join(map(repr, get_args(choices)))}")
