"""Whether one confidence set goes on where another stood: what tabulated sets ask before they intersect more posteriors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from gpsafe import kernels
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models.gp import GP


def continues(old: ConfidenceSet, taken: int, new: ConfidenceSet) -> bool:
    """Whether `new` has the bound, known part and kernels of `old`, and its first `taken` posteriors.

    Objects may differ, as after a restart; numbers may not.
    """
    if old.bound != new.bound or len(new.generations) < taken or not _one_prior(old.model, new.model):
        return False
    return all(_same(a, b) for a, b in zip(old.generations[:taken], new.generations[:taken], strict=True))


def _one_prior(one: GP, other: GP) -> bool:
    """Equal kernels, λ, outputs and known part."""
    if one is other:
        return True
    if one.outputs != other.outputs or not torch.equal(one.regularizer, other.regularizer):
        return False
    return _equal(one.prior, other.prior) and all(
        a is b or _equal(kernels.closed_form(a) or a, kernels.closed_form(b) or b)
        for a, b in zip(one.kernels, other.kernels, strict=True)
    )


def _same(one: GP, other: GP) -> bool:
    """Equal priors and data."""
    if one is other:
        return True
    if not _one_prior(one, other) or one.num_data != other.num_data:
        return False
    return one.num_data == 0 or (_equal(one.inputs, other.inputs) and _equal(one.targets, other.targets))


def _equal(one: object, other: object) -> bool:
    """Equality of tensors, and of dataclasses and tuples of them."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other.to(one.device)).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if is_dataclass(one):
        return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)
