"""A lock on a folder that ends with the process that holds it, however that process ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_log = logging.getLogger(__name__)


class Busy(Exception):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def held(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """Holds the lock that the file `path` stands for (made if missing, never removed: another may be waiting for it).

    The lock is the operating system's, on the open file: a process that is killed leaves none behind. Where the file system
    has no locks a warning is logged and nothing is held.

    Raises:
        Busy: if another holds it and `wait` is not given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:  # what a full disk refuses must not be tried again when it is closed
        try:
            _take(file, wait=False)
        except OSError as error:
            if error.errno not in _TAKEN:
                _log.warning("%s cannot be locked (%s): another run here would do the same work", path, error.strerror)
            elif not wait:
                raise Busy(owner(path)) from None
            else:
                _log.warning("%s is locked by %s: waiting", path, owner(path))
                _take(file, wait=True)
        with contextlib.suppress(OSError):  # who holds it is for messages only: a full disk must not stop us here
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def owner(path: str | os.PathLike[str]) -> str:
    """Who took the lock last, in words."""
    with contextlib.suppress(OSError):
        if told := Path(path).read_text(errors="replace").strip()[:200]:
            return told
    return "another process"


def free(path: str | os.PathLike[str]) -> bool:
    """Whether nobody holds the lock now."""
    if not Path(path).exists():
        return True
    try:
        with open(path, "ab") as file:
            _take(file, wait=False)
    except OSError as error:
        return error.errno not in _TAKEN
    return True


try:
    import fcntl

    def _take(file: IO[bytes], *, wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

except ImportError:  # Windows
    import msvcrt
    import time

    def _take(file: IO[bytes], *, wait: bool) -> None:
        while True:
            file.seek(1 << 20)  # far behind the text, which others may then read
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
            except OSError:
                if not wait:
                    raise
                time.sleep(0.5)
