"""Boxes and zonotopes: values by hand."""

import math
from functools import partial

import pytest
import torch

from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope

tensor = partial(torch.tensor, dtype=torch.float64)


def test_boxes_to_the_letter():
    box = Box(tensor([0.0, -1.0]), tensor([2.0, 3.0]))
    assert (box.center.tolist(), box.radius.tolist(), box.dim) == ([1.0, 1.0], [1.0, 2.0], 2)
    assert box.support(tensor([[1.0, -1.0], [0.0, 2.0]])).tolist() == [3.0, 6.0]
    image = box.image_outer(tensor([[1.0, -1.0]]), tensor([0.5]))
    assert (image.lower.tolist(), image.upper.tolist()) == ([-2.5], [3.5])
    assert box.contains(tensor([[0.0, 3.0], [-1e-15, 0.0], [1.0, 3.1]])).tolist() == [True, False, False]
    assert box.clip(tensor([-1.0, 9.0])).tolist() == [0.0, 3.0]
    common = box.intersect(Box(tensor([1.0, -5.0]), tensor([7.0, 0.0])))
    assert (common.lower.tolist(), common.upper.tolist()) == ([1.0, -1.0], [2.0, 0.0])
    assert Box(tensor([1.0]), tensor([1.0])).radius.tolist() == [0.0]
    for low, high in (([0.0, 1.0], [1.0, 0.9]), ([[0.0]], [[1.0]]), ([0.0], [1.0, 2.0]), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="Box"):
            Box(tensor(low), tensor(high))


def test_zonotopes_to_the_letter():
    body = Zonotope(tensor([1.0, -1.0]), tensor([[2.0, -1.0, 0.0], [0.0, 3.0, 0.5]]))
    assert (body.order, body.radius.tolist()) == (3, [3.0, 3.5])
    assert body.support(tensor([[1.0, 1.0], [0.0, -2.0]])).tolist() == [0.0 + 2 + 2 + 0.5, 2.0 + 6 + 1]
    moved = body.affine(tensor([[0.0, 2.0]]), tensor([7.0]))
    assert (moved.center.tolist(), moved.generators.tolist()) == ([5.0], [[0.0, 6.0, 1.0]])
    wider = body.plus_box(tensor([0.0, 0.25]))
    assert wider.support(tensor([[0.0, 1.0], [1.0, 0.0]])).tolist() == [2.75, 4.0]
    two = Zonotope(torch.zeros(2, 2).double(), torch.zeros(2, 2, 0).double()).plus_box(tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert two.radius.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    with pytest.raises(ValueError, match="generators"):
        Zonotope(torch.zeros(2), torch.zeros(3, 1))


def test_reduction_boxes_the_oldest_generators_in_their_own_frame():
    g = torch.randn(3, 2, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    g[:, :, :5] *= tensor([[5.0], [0.1]])
    body = Zonotope(torch.zeros(3, 2).double(), g)
    assert body.reduce_outer(11) is body
    small = body.reduce_outer(6)
    assert small.order == 5  # two axes, and half of the limit
    for b in range(3):
        old, new = g[b, :, :8], g[b, :, 8:]
        frame = torch.linalg.eigh(old @ old.mT).eigenvectors
        for n in torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(b)):
            exact = float((n @ new).abs().sum() + ((n @ frame).abs() * (frame.mT @ old).abs().sum(-1)).sum())
            found = float(small.support(n[None])[b, 0])
            assert exact * (1 + 1e-15) < found < exact * (1 + 1e-11)
    assert body.reduce_outer(1).order == 2 + 2  # never below twice the dimension, of which half is kept
