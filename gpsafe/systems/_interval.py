"""Interval arithmetic on arrays, rounded outward: the range of a composition is inside what these rules give.

An interval [low, high] of reals may be unbounded; 0·∞ is 0, since every factor is a real number. Exact zeros stay exact zeros
(a sum of floats is 0 only if it is 0, a product only if a factor is, or it underflows, which is widened), so that what is
affine keeps second derivatives 0. A function φ of one variable is given with φ′ and φ″ and the places where these turn: its
range is the hull of its values at both ends and at the places between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
ULPS = 4096 * EPS  # relative error of φ, φ′, φ″ as computed: a few ulp, and |ln x| of them for powers
TINY, HUGE = 1e-300, float(np.finfo(np.float64).max)
FAR = 1e150  # where derivatives are evaluated in place of what is beyond, whose limit, 0 or ∞, is added
REDUCED = 1e8  # up to where the places of sine and cosine within their period are trusted


@dataclass(frozen=True, slots=True)
class Interval:
    """low ≤ x ≤ high, elementwise."""

    low: Array
    high: Array

    def __add__(self, other: Interval) -> Interval:
        with np.errstate(all="ignore"):
            return outward(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __sub__(self, other: Interval) -> Interval:
        return self + (-other)

    def __mul__(self, other: Interval) -> Interval:
        with np.errstate(all="ignore"):
            products = [_product(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
            lost = [((a != 0) & (b != 0)) for a in (self.low, self.high) for b in (other.low, other.high)]
        small = np.logical_or.reduce([flag & (p == 0) for flag, p in zip(lost, products, strict=True)])
        found = outward(np.minimum.reduce(products), np.maximum.reduce(products))
        return Interval(found.low - TINY * small, found.high + TINY * small)

    def square(self) -> Interval:
        """{x²}: never negative."""
        found = self * self
        return Interval(np.maximum(found.low, 0.0), found.high)

    def __getitem__(self, key: object) -> Interval:
        return Interval(self.low[key], self.high[key])  # type: ignore[index]

    def hull(self, other: Interval) -> Interval:
        """What is in either."""
        return Interval(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    @property
    def size(self) -> Array:
        """sup |x|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def _product(a: Array, b: Array) -> Array:
    found = a * b
    return np.where(np.isnan(found) & ~(np.isnan(a) | np.isnan(b)), 0.0, found)


def outward(low: Array, high: Array, margin: float = 4 * EPS, least: float = 0.0) -> Interval:
    """[low, high] widened by a relative margin, and `least`, where it is finite, 0 by `least` alone; NaN is the whole line."""
    with np.errstate(all="ignore"):
        low = np.where(np.isnan(low), -np.inf, np.minimum(low, HUGE))
        high = np.where(np.isnan(high), np.inf, np.maximum(high, -HUGE))
        low = np.where(np.isfinite(low) & (low != 0), low - margin * np.abs(low) - TINY, low - least)
        high = np.where(np.isfinite(high) & (high != 0), high + margin * np.abs(high) + TINY, high + least)
    return Interval(low, high)


@dataclass(frozen=True, slots=True)
class Smooth:
    """φ, φ′, φ″ to a few ulp of themselves, where each of them turns, and the open interval on which φ is smooth."""

    parts: tuple[Callable[[Array], Array], ...]
    turns: tuple[tuple[float, ...], ...] = ((), (), ())
    domain: tuple[float, float] = (-math.inf, math.inf)

    def smooth(self, x: Interval) -> NDArray[np.bool_]:
        """Whether φ is smooth on the whole interval."""
        low, high = self.domain
        return ((x.low > low) | (low == -math.inf)) & ((x.high < high) | (high == math.inf))

    def defined(self, x: Interval) -> NDArray[np.bool_]:
        """Whether φ has a value, finite or not, on the whole interval."""
        return (x.low >= self.domain[0]) & (x.high <= self.domain[1])

    def over(self, order: int, x: Interval) -> Interval:
        """Range of the derivative of that order over x, inside the closed domain."""
        low, high = (np.clip(end, *self.domain) for end in (x.low, x.high))
        part = self.parts[order]
        with np.errstate(all="ignore"):
            ends = [part(np.clip(end, -FAR, FAR) if order else end) for end in (low, high)]
            if order:  # beyond, what decays is below 1 there, and what grows above
                limits = [np.where(np.abs(end) > 1, end * np.inf, 0.0) for end in ends]
                beyond = zip((low, high), ends, limits, strict=True)
                ends += [np.where(np.abs(x) > FAR, limit, end) for x, end, limit in beyond]
            least, most = np.minimum.reduce(ends), np.maximum.reduce(ends)
            for turn in self.turns[order]:
                inside = (low <= turn) & (turn <= high)
                value = part(np.asarray(turn))
                least = np.where(inside, np.minimum(least, value), least)
                most = np.where(inside, np.maximum(most, value), most)
        return outward(least, most, ULPS, TINY)


class Reciprocal(Smooth):
    """1/x and integer powers below 0: smooth on either side of 0."""

    __slots__ = ()

    def smooth(self, x: Interval) -> NDArray[np.bool_]:
        """See `Smooth`."""
        return (x.low > 0) | (x.high < 0)

    defined = smooth


class Tangent(Smooth):
    """Smooth between two poles."""

    __slots__ = ()

    def smooth(self, x: Interval) -> NDArray[np.bool_]:
        """See `Smooth`."""
        with np.errstate(all="ignore"):
            low, high = (np.floor(end / math.pi + 0.5) for end in (x.low - 1e-6, x.high + 1e-6))
            return (x.size < REDUCED) & (low == high)

    defined = smooth

    def over(self, order: int, x: Interval) -> Interval:
        """See `Smooth`."""
        found = Smooth.over(self, order, x)
        if order != 1:
            return found
        with np.errstate(all="ignore"):  # φ′ is least at kπ, where tan changes its sign
            level = (np.tan(x.low) <= 0) & (np.tan(x.high) >= 0)
        return Interval(np.where(level, np.minimum(found.low, 1.0), found.low), found.high)


@dataclass(frozen=True, slots=True)
class Wave(Smooth):
    """cos(x − shift) and its derivatives."""

    shift: float = 0.0

    def over(self, order: int, x: Interval) -> Interval:
        """See `Smooth`."""
        shift = self.shift - order * math.pi / 2  # of this derivative, which is a cosine too
        with np.errstate(all="ignore"):
            ends = [self.parts[order](end) for end in (x.low, x.high)]
            low, high = x.low - shift, x.high - shift
            slack = 1e-6
            anywhere = ~(np.maximum(np.abs(low), np.abs(high)) < REDUCED)

            def reached(place: float) -> NDArray[np.bool_]:
                turn = 2 * math.pi
                return anywhere | (np.ceil((low - slack - place) / turn) <= np.floor((high + slack - place) / turn))

            least = np.where(reached(math.pi), -1.0, np.fmin(*ends))
            most = np.where(reached(0.0), 1.0, np.fmax(*ends))
        found = outward(least, most, ULPS, TINY)
        return Interval(np.maximum(found.low, -1.0), np.minimum(found.high, 1.0))


def power(c: float) -> Smooth:
    """x^c."""
    whole = c == int(c)

    def derivative(order: int) -> Callable[[Array], Array]:
        factor = math.prod(c - i for i in range(order))
        return lambda x: factor * np.power(x, c - order) if factor else np.zeros_like(x)

    parts = tuple(derivative(order) for order in range(3))
    if whole and c < 0:
        return Reciprocal(parts)
    return Smooth(parts, ((0.0,),) * 3) if whole else Smooth(parts, domain=(0.0, math.inf))


ROOT_PI = math.sqrt(math.pi)
SMOOTH: dict[str, Smooth] = {
    "sin": Wave((np.sin, np.cos, lambda x: -np.sin(x)), shift=math.pi / 2),
    "cos": Wave((np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x))),
    "tan": Tangent((np.tan, lambda x: np.cos(x) ** -2, lambda x: 2 * np.tan(x) * np.cos(x) ** -2)),
    "tanh": Smooth(
        (np.tanh, lambda x: np.cosh(x) ** -2, lambda x: -2 * np.tanh(x) * np.cosh(x) ** -2),
        ((), (0.0,), (-math.atanh(3**-0.5), math.atanh(3**-0.5))),
    ),
    "exp": Smooth((np.exp,) * 3),
    "expm1": Smooth((np.expm1, np.exp, np.exp)),
    "log": Smooth((np.log, lambda x: 1 / x, lambda x: -1 / x / x), domain=(0.0, math.inf)),
    "log1p": Smooth((np.log1p, lambda x: 1 / (1 + x), lambda x: -((1 + x) ** -2)), domain=(-1.0, math.inf)),
    "sqrt": Smooth((np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda x: -0.25 / np.sqrt(x) / x), domain=(0.0, math.inf)),
    "reciprocal": Reciprocal((lambda x: 1 / x, lambda x: -1 / x / x, lambda x: 2 / x / x / x)),
    "atan": Smooth(
        (np.arctan, lambda x: 1 / (1 + x * x), lambda x: -2 * x / (1 + x * x) / (1 + x * x)),
        ((), (0.0,), (-(3**-0.5), 3**-0.5)),
    ),
    "asin": Smooth(
        (np.arcsin, lambda x: ((1 - x) * (1 + x)) ** -0.5, lambda x: x * ((1 - x) * (1 + x)) ** -1.5),
        ((), (0.0,), ()),
        (-1.0, 1.0),
    ),
    "acos": Smooth(
        (np.arccos, lambda x: -(((1 - x) * (1 + x)) ** -0.5), lambda x: -x * ((1 - x) * (1 + x)) ** -1.5),
        ((), (0.0,), ()),
        (-1.0, 1.0),
    ),
    "sinh": Smooth((np.sinh, np.cosh, np.sinh), ((), (0.0,), ())),
    "cosh": Smooth((np.cosh, np.sinh, np.cosh), ((0.0,), (), (0.0,))),
    "asinh": Smooth(
        (np.arcsinh, lambda x: (1 + x * x) ** -0.5, lambda x: -x * (1 + x * x) ** -1.5),
        ((), (0.0,), (-(2**-0.5), 2**-0.5)),
    ),
    "acosh": Smooth(
        (np.arccosh, lambda x: ((x - 1) * (x + 1)) ** -0.5, lambda x: -x * ((x - 1) * (x + 1)) ** -1.5),
        domain=(1.0, math.inf),
    ),
    "atanh": Smooth(
        (np.arctanh, lambda x: 1 / ((1 - x) * (1 + x)), lambda x: 2 * x / ((1 - x) * (1 + x)) ** 2),
        ((), (0.0,), ()),
        (-1.0, 1.0),
    ),
    "erf": Smooth(
        (special.erf, lambda x: 2 / ROOT_PI * np.exp(-x * x), lambda x: -4 / ROOT_PI * x * np.exp(-x * x)),
        ((), (0.0,), (-(2**-0.5), 2**-0.5)),
    ),
}
