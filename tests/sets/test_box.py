"""Boxes: the smallest box around an affine image."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.sets import Box, Polytope


@given(seeds(), st.integers(1, 4), st.integers(1, 3))
def test_image_outer_contains_the_image_and_touches_it_on_every_side(seed, dim, out):
    generator = torch.Generator().manual_seed(seed)
    center, radius = torch.randn(2, dim, dtype=torch.float64, generator=generator)
    box = Box(center - radius.abs(), center + radius.abs())
    matrix = torch.randn(out, dim, dtype=torch.float64, generator=generator)
    offset = torch.randn(out, dtype=torch.float64, generator=generator)
    corners = box.vertices() @ matrix.mT + offset
    around = box.image_outer(matrix, offset)
    torch.testing.assert_close(around.lower, corners.amin(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(around.upper, corners.amax(0), rtol=0, atol=1e-12)


def test_image_outer_is_the_box_of_the_exact_image():
    box = Box(torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 2.0]).double())
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    exact = Polytope.of_box(box).image(turn, torch.zeros(2).double()).bounding_box()
    around = box.image_outer(turn, torch.zeros(2).double())
    torch.testing.assert_close(around.lower, exact.lower, rtol=0, atol=1e-8)
    torch.testing.assert_close(around.upper, exact.upper, rtol=0, atol=1e-8)


def test_wrong_dimensions_are_refused():
    box = Box(torch.zeros(2).double(), torch.ones(2).double())
    with pytest.raises(ValueError, match=r"Box.image_outer: expected matrix"):
        box.image_outer(torch.eye(3).double(), torch.zeros(3).double())
