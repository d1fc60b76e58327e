"""Fixtures of the tests that compare ranges with loops."""

import numpy as np
import pytest
from range_cases import LOUD

from gpsafe.confidence import _cells, _output, _taylor, ranges


@pytest.fixture
def loud(monkeypatch) -> float:
    """A unit roundoff that comparisons see, in the modules of ranges."""
    for module in (_taylor, _output, _cells, ranges):
        monkeypatch.setattr(module, "EPS", LOUD)
    return LOUD


@pytest.fixture
def low_orders(monkeypatch):
    """RBF of order 2, variance up to degree 3: short loops, and something left out."""
    for d in (1, 2):
        monkeypatch.setitem(_taylor.ORDERS, d, 2)
        monkeypatch.setitem(_taylor.DEGREES, d, 3)
    with np.errstate(all="ignore"):
        yield
