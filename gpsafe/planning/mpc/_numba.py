"""`numba.njit` that compiles wherever it runs: a disk cache that cannot be used costs seconds, never the function.

With ``cache=True`` numba raises where no folder can be written (a container, another user's installation), so that the module
cannot be imported; and on a full disk, or with files that it may not read, at the first call. Both become a line in the log.
And numba keeps machine code as long as the function's own file stays as it is, with whatever it calls in other files built in:
here it is kept as long as all private modules beside that file do.

Of processes that start together with nothing on disk one compiles, and the others read what it has kept.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache as once
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    import numba
    from numba.core import sigutils
    from numba.core.caching import FunctionCache, IndexDataCacheFile
    from numba.core.compiler_lock import global_compiler_lock
except ImportError as error:
    raise ImportError("gpsafe.planning.mpc needs numba: pip install 'gpsafe[mpc]'", name="numba") from error

try:
    import fcntl
except ImportError:  # Windows: every process compiles
    fcntl = None

_log = logging.getLogger(__name__)

LOOK = 0.02  # seconds between two looks whether another process still compiles
_patience = 300.0  # seconds to wait for it, which may have been stopped; then never again


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


_alone = False  # whether this process is the one that compiles; read and written under numba's own lock


def _one_at_a_time(function: Any) -> Callable[[Any], Any]:
    """The function's `compile`, behind a lock of its cache's folder for what is not compiled in this process yet.

    What it calls is compiled within it, under the same lock. Numba's lock of threads is taken first, as numba takes it around
    everything that may come here: no two threads can wait for one another.
    """
    compile_, folder = function.compile, Path(function._cache.cache_path)

    def compiled(signature: Any) -> Any:
        global _alone
        with global_compiler_lock:
            if _alone or tuple(sigutils.normalize_signature(signature)[0]) in function.overloads:
                return compile_(signature)
            with _locked(folder):
                _alone = True
                try:
                    return compile_(signature)
                finally:
                    _alone = False

    return compiled


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While no other process has the folder; also where that cannot be known, or takes too long."""
    handle = None
    with suppress(OSError):
        handle = os.open(folder / "compiling.lock", os.O_RDWR | os.O_CREAT, 0o666)
    if handle is None or fcntl is None:
        yield
        return
    try:
        _take(handle)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing does not, if a fork of this process has the file open too
        os.close(handle)


def _take(handle: int) -> None:
    global _patience
    assert fcntl is not None
    end = time.monotonic() + _patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                _patience = 0.0
                return
            time.sleep(LOOK)
        except OSError:  # a file system without locks
            return


def njit(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `numba.njit`; with `cache` the machine code is kept on disk if a folder can be written, else in memory only.

    A division by zero is infinite or NaN, as in NumPy: a search that meets one ends as "diverged", not in an exception.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made: Any = numba.njit(error_model="numpy", **options)(function)
        if cache and made is not function:  # which it is where compilation is disabled
            try:
                made._cache = _Cache(function)
                made.compile = _one_at_a_time(made)
            except (RuntimeError, OSError):  # "no locator available"
                _warn(f"no folder can be written for {Path(function.__code__.co_filename).parent}")
        return made

    return decorate
