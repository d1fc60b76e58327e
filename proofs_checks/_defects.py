"""Defects of one term each, for graded controls: patches of a single name that multiply what it gives by a factor."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from gpsafe._sealed import sealed
from gpsafe.confidence import Mixture
from gpsafe.cost import _closed_loop
from gpsafe.cost.local_affine import Displacements, LocalAffine, Moduli
from gpsafe.policies import AffinePolicies
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import KnownPart
from gpsafe.testbed.check import Grade

from ._edges import edge

Scaled = Callable[[float], AbstractContextManager[object]]
T = TypeVar("T")
FACTORS = (0.99, 0.95, 0.9, 0.7, 0.5, 0.0)


def forged(result: T, **changes: Any) -> T:
    """With other parts under the word that was said of its own, which `dataclasses.replace` refuses."""
    found: Any = copy.copy(result)
    for name, value in changes.items():
        object.__setattr__(found, name, value)
    return sealed(found, free=[f.name for f in fields(found) if f.name not in found._seal.parts])


def graded(term: str, names: tuple[str, ...], order: tuple[str, ...], scaled: Scaled) -> Grade:
    """A grade on the pieces of the plants `names`, numbered as in `order`; they are made before anything is patched."""

    def prepared(factor: float) -> AbstractContextManager[object]:
        for name in names:
            edge(name)
        return scaled(factor)

    return Grade(term, prepared, tuple(order.index(name) for name in names), FACTORS)


def around(owner: Any, name: str, change: Callable[[Any, float], Any], *, static: bool = False) -> Scaled:
    """Patches a function or method: what it returns is changed by `change(result, factor)`."""
    original = getattr(owner, name)

    def scaled(factor: float) -> AbstractContextManager[object]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            return change(original(*args, **kwargs), factor)

        return mock.patch.object(owner, name, staticmethod(patched) if static else patched)

    return scaled


def times(value: Any, factor: float) -> Any:
    """value · factor."""
    return value * factor


def past_one(value: Any, factor: float) -> Any:
    """1 + factor·(value − 1): what is above 1."""
    return 1.0 + factor * (value - 1.0)


def replaced(owner: Any, name: str, change: Callable[[Any, float], Any]) -> Scaled:
    """Patches a function by `change(function, factor)`."""
    original = getattr(owner, name)
    return lambda factor: mock.patch.object(owner, name, change(original, factor))


def set_to_factor(owner: Any, name: str) -> Scaled:
    """Sets a number of a module, 1 where nothing is wrong, to the factor."""
    return lambda factor: mock.patch.object(owner, name, factor)


def scaled_argument(owner: Any, name: str, argument: str) -> Scaled:
    """Patches a function or method: one of its arguments is scaled."""

    def change(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def patched(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.arguments[argument] = factor * given.arguments[argument]
            return function(*given.args, **given.kwargs)

        return patched

    return replaced(owner, name, change)


def _local(change: Callable[[LocalAffine, float], LocalAffine]) -> Scaled:
    return around(LocalAffine, "at", change, static=True)


def _less_correlation(local: LocalAffine, factor: float) -> LocalAffine:
    assert local.cov is not None
    scale = torch.full_like(local.cov, factor)
    scale[..., 0, 0], scale[..., 1:, 1:] = 1.0, 1.0
    return replace(local, cov=local.cov * scale)


def _less_reach(known: Any, factor: float) -> Any:
    """The Hessian remainder with the input's part of the radius scaled."""

    def remainder(part: KnownPart, center: Tensor, radius: Tensor) -> Tensor:
        scale = torch.ones(radius.shape[-1], dtype=torch.float64)
        scale[-1] = factor  # nu = 1
        return known(part, center, scale * radius)

    return remainder


def _less_error(displacements: Any, factor: float) -> Any:
    """The sets of z − a with the error (what was clipped) scaled."""
    return lambda offset, generators, error: displacements(offset, generators, factor * error)


def _less_gradient(local: LocalAffine, factor: float) -> LocalAffine:
    assert local.cov is not None
    scale = torch.full_like(local.cov[..., 0], factor)
    scale[..., 0] = 1.0
    return replace(local, cov=local.cov * scale.unsqueeze(-1) * scale.unsqueeze(-2))


def _less_box(original: Callable[[Zonotope, int], Zonotope]) -> Scaled:
    def scaled(factor: float) -> AbstractContextManager[object]:
        def patched(tube: Zonotope, order: int) -> Zonotope:
            found = original(tube, order)
            if found is tube:
                return found
            d = tube.center.shape[-1]
            scale = torch.ones(found.order, dtype=torch.float64)
            scale[:d] = factor  # what the reduced generators were replaced by
            return replace(found, generators=found.generators * scale)

        return mock.patch.object(Zonotope, "reduce_outer", patched)

    return scaled


def _less_strip(chords: tuple[Tensor, Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor, Tensor]:
    middle, slope, half = chords
    return middle, slope, factor * half


def tube_grades(order: tuple[str, ...]) -> tuple[Grade, ...]:
    """The terms that all tubes share; `order` numbers the pieces."""
    terms: tuple[tuple[str, str, Scaled], ...] = (
        ("confidence width β", "value", around(Mixture, "beta", times)),
        ("value interval at the anchor", "value", _local(lambda local, g: replace(local, half=g * local.half))),
        ("cap B√k", "cap", _local(lambda local, g: replace(local, cap=g * local.cap))),
        ("RKHS norm B between points", "taylor", _local(lambda local, g: replace(local, norm=g * local.norm))),
        ("Taylor rest", "taylor", around(Moduli, "rest_within", times)),
        ("norm of a displacement in several inputs", "taylor in two", around(Displacements, "scaled_norm", times)),
        ("kernel metric", "metric", around(Moduli, "metric", times)),
        ("correlation of value and gradient", "tilted", _local(_less_correlation)),
        ("gradient's confidence width", "gradient", _local(_less_gradient)),
        ("Hessian remainder of the known part", "curved", around(_closed_loop, "remainder_outer", times)),
        ("inputs in the Hessian remainder", "curved by input", replaced(_closed_loop, "remainder_outer", _less_reach)),
        (
            "clipped part of the residual's inputs",
            "clipped residual",
            replaced(_closed_loop, "Displacements", _less_error),
        ),
        ("strip about the chord of the policy", "clipped", around(AffinePolicies, "chords", _less_strip)),
        ("box that replaces old generators", "drift", _less_box(Zonotope.reduce_outer)),
    )
    return tuple(graded(term, (name,), order, scaled) for term, name, scaled in terms)
