"""`numba.njit` that compiles wherever it runs: a disk cache that cannot be used costs seconds, never the function.

With ``cache=True`` numba raises where no folder can be written (a container, another user's installation), so that the module
cannot be imported; and on a full disk, or with files that it may not read, at the first call. Both become a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as once
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

_log = logging.getLogger(__name__)


class _Cache(FunctionCache):
    """Numba's cache on disk, given up at the first failure to read or write it."""

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file system or of foreign bytes: whatever it is, compiling anew answers it
            _warn(f"{type(error).__name__}: {error}")
            self.disable()


@once
def _warn(why: str) -> None:
    _log.warning("machine code is not kept on disk, so that every process compiles anew (about 8 s): %s", why)


def njit(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `numba.njit`; with `cache` the machine code is kept on disk if a folder can be written, else in memory only."""

    def decorate(function: Callable[..., Any]) -> Any:
        made: Any = numba.njit(**options)(function)
        if cache:
            try:
                made._cache = _Cache(function)
            except (RuntimeError, OSError):  # "no locator available"
                _warn(f"no folder can be written for {Path(function.__code__.co_filename).parent}")
        return made

    return decorate
