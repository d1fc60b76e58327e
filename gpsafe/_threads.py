"""One thread of linear algebra where matrices are small: more of them wait for each other, on a busy machine for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    import numpy  # noqa: F401  (its library must be loaded to be found)

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, or a function it decorates, NumPy's products use one thread.

    At 128 × 100 × 100, two took sixty times as long where a core was busy.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield
