"""`numba.njit` that compiles wherever it runs: a disk cache that cannot be used costs seconds, never the function.

With ``cache=True`` numba raises where no folder can be written (a container, another user's installation), so that the module
cannot be imported; and on a full disk, or with files that it may not read, at the first call. Both become a line in the log.
And numba keeps machine code as long as the function's own file stays as it is, with whatever it calls in other files built in:
here it is kept as long as all private modules beside that file do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as once
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_log = logging.getLogger(__name__)


class _Cache(FunctionCache):
    """Numba's cache on disk, of what `sources` has become, given up at the first failure to read or write it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp(), sources(Path(function.__code__.co_filename).parent)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file system or of foreign bytes: whatever it is, compiling anew answers it
            _warn(f"{type(error).__name__}: {error}")
            self.disable()


@once
def sources(folder: Path) -> str:
    """Digest of the private modules in a folder: the compiled functions, and the constants that they are compiled with."""
    found = sha256()
    for path in sorted(folder.glob("_*.py")):
        found.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()


@once
def _warn(why: str) -> None:
    _log.warning("machine code is not kept on disk, so that every process compiles anew (about half a minute): %s", why)


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
