"""Whether one confidence set goes on where another stood: what tabulated sets ask before they intersect more posteriors."""

from __future__ import annotations

from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.lineage import fingerprint, provably_equal, scales
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models.gp import GP


def continues(old: ConfidenceSet, taken: int, new: ConfidenceSet) -> bool:
    """Whether `new` has the bound, known part and kernels of `old`, and its first `taken` posteriors.

    Objects may differ, as after a restart; numbers may not.
    """
    if old.bound != new.bound or len(new.generations) < taken or not _one_prior(old.model, new.model):
        return False
    return all(_same(a, b) for a, b in zip(old.generations[:taken], new.generations[:taken], strict=True))


def require_continuation(where: str, old: ConfidenceSet, new: ConfidenceSet) -> None:
    """Refuses a set that does not go on where all of `old` stood: bounds found under `old` would not hold for it."""
    if not continues(old, len(old.generations), new):
        raise _require.fail(where, "a confidence set that continues the last one", "another history")


def _one_prior(one: GP, other: GP) -> bool:
    """Equal kernels, λ, outputs and known part."""
    if one is other:
        return True
    plain = [(model.outputs, [fingerprint(kernel) for kernel in model.kernels]) for model in (one, other)]
    return (
        plain[0] == plain[1] and _equal(one.regularizer, other.regularizer) and provably_equal(one.prior, other.prior)
    )


def _same(one: GP, other: GP) -> bool:
    """Equal priors and data."""
    if one is other:
        return True
    data = [(model.inputs, model.targets, scales(model)) for model in (one, other)]
    return _one_prior(one, other) and all(_equal(a, b) for a, b in zip(*data, strict=True))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one == other.to(one.device)).all())
