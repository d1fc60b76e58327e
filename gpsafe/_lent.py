"""What is lent to those who are not believed: whatever they write on, the original stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from gpsafe import _require

T = TypeVar("T")
_LENT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def copied(where: str, thing: T) -> T:
    """A deep copy.

    Raises:
        ValueError: if it cannot be copied.
    """
    try:
        return copy.deepcopy(thing)
    except Exception as error:
        raise _require.fail(where, "a model that can be copied, for proposers to use", _require.told(error)) from error


def lent(where: str, thing: T) -> T:
    """A deep copy, the same one every time."""
    if thing not in _LENT:
        _LENT[thing] = copied(where, thing)
    found: T = _LENT[thing]
    return found


@contextmanager
def surroundings() -> Iterator[None]:
    """For a call of those who are not believed: NumPy's error state, torch's gradients, default type and default device are
    afterwards what they were, whatever it sets.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        with np.errstate(), torch.enable_grad():
            yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:  # None: the CPU, without a mode that every call would go through
            torch.set_default_device(None if device.type == "cpu" else device)
