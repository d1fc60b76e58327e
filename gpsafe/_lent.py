"""What is lent to those who are not believed: whatever they write on, the original stays."""

from __future__ import annotations

import copy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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
