"""One thread of linear algebra where matrices are small: more of them wait for each other, on a busy machine for ever."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    import numpy  # noqa: F401  (its library must be loaded to be found)

    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it NumPy's products use one thread: at 128 × 100 × 100, two took sixty times as long where a core was busy."""
    return _controller().limit(limits=1, user_api="blas")
