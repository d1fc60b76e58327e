"""Poison cases of sets, and of the costs charged over them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from poison import ROWS, Arguments, PoisonCase, Results, draw
from torch import Tensor

from gpsafe.cost.scenario_tube import charge_upper
from gpsafe.linalg import vector
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.sets._containment import maximize_square
from gpsafe.sets.zonotope import HUGE, Zonotope
from gpsafe.systems.base import HingeCost, IndicatorCost

INDICATOR = IndicatorCost(torch.eye(2).double(), vector(9.0, 9.0))
HINGE = HingeCost(vector(1.0, 1.0), 9.0, 2.0)
FLAT = Ellipsoid(vector(0.0, 0.0), vector(1.0, 0.0).reshape(2, 1))
ROUND = Ellipsoid(vector(0.1, 0.0), vector(3.0, 0.4, 0.0, 2.0).reshape(2, 2))
SQUARE = Box(vector(-1.0, -2.0), vector(1.0, 2.0))
POLYTOPE = Polytope.of_box(SQUARE)


def bodies(order: int = 4, **more: tuple[int, ...]) -> Callable[[], Arguments]:
    """A batch of zonotopes, and positive tensors of the given shapes."""
    extra = {name: draw(*shape, seed=5).abs() for name, shape in more.items()}
    return lambda: {"center": draw(ROWS, 2), "generators": draw(ROWS, 2, order, seed=1), **extra}


def made(make: Callable[..., Zonotope]) -> Callable[..., Results]:
    """An operation that gives zonotopes."""

    def run(center: Tensor, generators: Tensor, **more: Tensor) -> Results:
        body = make(Zonotope(center, generators), **more)
        return body.center, body.generators

    return run


def wide(center: Tensor, generators: Tensor) -> Tensor:
    return ~Zonotope(center, generators).within(HUGE)


def asked(question: Callable[[Zonotope], Tensor]) -> Callable[..., Results]:
    return lambda center, generators: (question(Zonotope(center, generators)),)


def points() -> Arguments:
    return {"x": 0.1 * draw(ROWS, 2, seed=3)}


def on_line() -> Arguments:
    return {"x": torch.stack([0.1 * draw(ROWS), torch.zeros(ROWS).double()], -1)}


def ellipsoids() -> Arguments:
    return {"center": 0.1 * draw(ROWS, 2), "factor": 0.1 * draw(ROWS, 2, 2, seed=1)}


def of_ellipsoid(function: Callable[[Ellipsoid], Ellipsoid | Tensor]) -> Callable[..., Results]:
    def run(center: Tensor, factor: Tensor) -> Results:
        found = function(Ellipsoid(center, factor))
        return (found.center, found.factor) if isinstance(found, Ellipsoid) else (found,)

    return run


def no(answer: Tensor) -> Tensor:
    """A predicate is refused where it is False."""
    return ~answer


DIRECTIONS = {"direction": (ROWS, 2)}


def tensors(**shapes: tuple[int, ...]) -> Callable[[], Arguments]:
    return lambda: {name: draw(*shape, seed=7) for name, shape in shapes.items()}


def flat_at(x: Tensor, length: Tensor) -> Ellipsoid:
    return Ellipsoid(x, torch.stack([length, torch.zeros_like(length)], -1).unsqueeze(-1))


def corners(box: Box) -> Results:
    return box.lower, box.upper


ZONOTOPES = {
    "Zonotope.plus_box": PoisonCase(made(Zonotope.plus_box), bodies(radius=(ROWS, 2)), wide),
    "Zonotope.plus_box, some axes": PoisonCase(
        made(lambda body, radius, rest: body.plus_box(torch.stack([radius, rest], -1), [0])),
        lambda: {**bodies(radius=(ROWS,))(), "rest": torch.zeros(ROWS).double()},
        wide,
    ),
    "Zonotope.affine": PoisonCase(made(Zonotope.affine), bodies(matrix=(ROWS, 2, 2), offset=(ROWS, 2)), wide),
    "Zonotope.reduce_outer": PoisonCase(made(lambda body: body.reduce_outer(4)), bodies(9), wide),
    "Zonotope.support": PoisonCase(asked(lambda body: body.support(vector(1, -2, 0, 1).reshape(2, 2))), bodies()),
    "Zonotope.terms": PoisonCase(asked(lambda body: body.terms(vector(1, -2, 0, 1).reshape(2, 2))), bodies()),
    "Zonotope.within": PoisonCase(asked(lambda body: body.within(10.0)), bodies(), no),
    "charge_upper, indicator": PoisonCase(
        asked(lambda body: charge_upper(INDICATOR, body)), bodies(), lambda c: c == 1
    ),
    "charge_upper, hinge": PoisonCase(asked(lambda body: charge_upper(HINGE, body)), bodies(), lambda c: c == 2),
}
ELLIPSOIDS = {
    "Ellipsoid": PoisonCase(of_ellipsoid(lambda e: e), ellipsoids, refuses=True),
    "Ellipsoid.ball": PoisonCase(
        lambda radius: (Ellipsoid.ball(torch.zeros(ROWS, 2).double(), radius.abs()).factor,),
        tensors(radius=(ROWS, 2)), refuses=True,
    ),
    "Ellipsoid.from_shape": PoisonCase(
        lambda axes: (Ellipsoid.from_shape(torch.zeros(ROWS, 2).double(), torch.diag_embed(axes.abs())).factor,),
        tensors(axes=(ROWS, 2)), refuses=True,
    ),
    "Ellipsoid.affine": PoisonCase(
        lambda matrix, offset: (lambda e: (e.center, e.factor))(ROUND.affine(matrix, offset)),
        tensors(matrix=(ROWS, 2, 2), offset=(ROWS, 2)), refuses=True,
    ),
    "Ellipsoid.minkowski_sum_outer": PoisonCase(
        of_ellipsoid(lambda e: e.minkowski_sum_outer(ROUND, FLAT)), ellipsoids, refuses=True
    ),
    "Ellipsoid.compress": PoisonCase(
        lambda factor: (Ellipsoid(torch.zeros(ROWS, 2).double(), factor).compress().factor,),
        tensors(factor=(ROWS, 2, 5)), refuses=True,
    ),
    "Ellipsoid.support": PoisonCase(lambda direction: (ROUND.support(direction),), tensors(**DIRECTIONS)),
    "Ellipsoid.support_point": PoisonCase(
        lambda direction: (ROUND.support_point(direction),), tensors(**DIRECTIONS),
        honest=lambda given, found: ((found[0] - ROUND.support_point(given["direction"] / 1e300)).abs() < 1e-9).all(-1),
    ),
    "Ellipsoid.gauge": PoisonCase(lambda x: (ROUND.gauge(x),), points),
    "Ellipsoid.gauge, flat": PoisonCase(lambda x: (FLAT.gauge(x),), on_line),
    "Ellipsoid.contains": PoisonCase(lambda x: (ROUND.contains(x),), points, no),
    "Ellipsoid.contains, flat": PoisonCase(lambda x: (FLAT.contains(x),), on_line, no),
    "Ellipsoid.nearest": PoisonCase(lambda x: (ROUND.nearest(x),), points),
    "Ellipsoid.inside": PoisonCase(of_ellipsoid(lambda e: e.inside(ROUND).holds), ellipsoids, no, refuses=True),
    "Ellipsoid.inside, flat": PoisonCase(
        lambda x, length: (flat_at(x, 0.1 * length).inside(FLAT).holds,),
        lambda: {**on_line(), "length": torch.ones(ROWS).double()}, no, refuses=True,
    ),
    "Ellipsoid.inside_halfspaces": PoisonCase(
        of_ellipsoid(lambda e: e.inside_halfspaces(POLYTOPE.H, POLYTOPE.h).holds), ellipsoids, no, refuses=True
    ),
    "maximize_square": PoisonCase(lambda a, A: (maximize_square(a, A)[0],), tensors(a=(ROWS, 2), A=(ROWS, 2, 3))),
}  # fmt: skip
OTHERS = {
    "Box": PoisonCase(
        lambda lower: (Box(lower, torch.full((ROWS,), 9.0).double()).lower,), tensors(lower=(ROWS,)), refuses=True
    ),
    "Box.image_outer": PoisonCase(
        lambda matrix, offset: corners(SQUARE.image_outer(matrix, offset)), tensors(matrix=(ROWS, 2), offset=(ROWS,)),
        refuses=True,
    ),
    "Box.intersect": PoisonCase(
        lambda lower: corners(Box(torch.full((ROWS,), -9.0).double(), torch.full((ROWS,), 9.0).double()).intersect(
            Box(lower, torch.full((ROWS,), 9.0).double()))),
        tensors(lower=(ROWS,)), refuses=True,
    ),
    "Box.support": PoisonCase(lambda direction: (SQUARE.support(direction),), tensors(**DIRECTIONS)),
    "Box.contains": PoisonCase(lambda x: (SQUARE.contains(x),), points, no),
    "Box.clip": PoisonCase(
        lambda x: (SQUARE.clip(x),), points, lambda x: x.isnan().any(-1) | SQUARE.contains(x)
    ),
    "Polytope": PoisonCase(lambda h: (Polytope(POLYTOPE.H[:ROWS], h).h,), tensors(h=(ROWS,)), refuses=True),
    "Polytope.contains": PoisonCase(lambda x: (POLYTOPE.contains(x),), points, no),
    "Polytope.violation": PoisonCase(lambda x: (POLYTOPE.violation(x),), points, lambda excess: ~(excess <= 0)),
    "Polytope.contains_ellipsoid": PoisonCase(
        of_ellipsoid(lambda e: POLYTOPE.contains_ellipsoid(e).holds), ellipsoids, no, refuses=True
    ),
}  # fmt: skip
CASES = {**ZONOTOPES, **ELLIPSOIDS, **OTHERS}
