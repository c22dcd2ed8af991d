"""Quiet tracing: what a trace would warn of is checked afterwards, on sizes that it has not seen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["quiet_tracing"]


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """No gradients, and no warnings.

    The tracer warns wherever Python code asks for a size. The models here do so only for what no input changes
    (channels, numbers of queries) or in a way that a trace records.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
