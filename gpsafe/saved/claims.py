"""What a file claims is held against what can be checked here; the rest is refused."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from gpsafe import _require
from gpsafe.certify import Certificate, judge
from gpsafe.safety import SafeParameters, SafePolicySet
from gpsafe.safety.safe_set import unfounded
from gpsafe.verdict import Outcome

AGREE = 1e-9  # relative agreement between a certificate and the judge on this machine: another BLAS rounds differently


def checked(value: Any, where: str) -> Any:
    """The value, if what it claims of itself is so.

    A safe set: every member entered by a value within the budget. A certificate: the judge finds the same when it looks at
    plan and problem again, and what it finds is returned: agreement is to 1e-9 of a 1, which numbers in small units pass
    whatever they are. Other objects are statements, as good as who wrote them.

    Raises:
        ValueError: naming the claim that does not hold.
    """
    reason = None
    if isinstance(value, SafePolicySet):
        reason = _of_policies(value)
    elif isinstance(value, SafeParameters):
        reason = _of_parameters(value)
    elif isinstance(value, Certificate):
        reason, value = _of_certificate(value)
    if reason is not None:
        raise _require.fail("load", f"a {type(value).__name__} whose claims hold at {where}", reason)
    return value


def _of_policies(safe: SafePolicySet) -> str | None:
    again = SafePolicySet.initial(safe.num, list(safe.witnesses), budget=safe.budget)  # its checks of size and members
    return unfounded(safe.witnesses, again.witnesses, safe.budget)


def _of_parameters(safe: SafeParameters) -> str | None:
    again = SafeParameters.initial(safe.theta, budget=safe.budget)
    if len(safe.witnesses) != len(again) or safe.radius.shape != safe.theta.shape:
        return (
            f"{len(safe.witnesses)} witnesses and radii {tuple(safe.radius.shape)} for theta {tuple(safe.theta.shape)}"
        )
    if not bool((safe.radius >= 0).all()):
        return "a negative radius"
    return unfounded(dict(enumerate(safe.witnesses)), range(len(again)), safe.budget)


def _of_certificate(found: Certificate) -> tuple[str | None, Certificate]:
    """Why it is not so, and the certificate with margins, tube and verdict by the judge of now."""
    if found.tube is None:
        return ("HOLDS without a tube" if found.outcome is Outcome.HOLDS else None), found
    again = judge(found.problem, found.tube.center[0, 0], found.action, found.proposal)
    if again.outcome is not found.outcome:
        return f"{found.outcome}, where the judge finds {again.outcome}", found
    if again.assumptions != found.assumptions:
        return f"assumptions {found.assumptions}, where the judge lists {again.assumptions}", found
    wrong = [
        name for name in ("margins", "tube", "inputs", "gain", "action", "verdict") if not _agree(found, again, name)
    ]
    if wrong:
        return f"other {', '.join(wrong)} than the judge finds", found
    return None, replace(again, distance=found.distance, seconds=found.seconds)


def _agree(one: Any, other: Any, name: str) -> bool:
    a, b = getattr(one, name), getattr(other, name)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        scale = float(b.abs().max()) if b.numel() else 0.0
        return a.shape == b.shape and bool(((a - b).abs() <= AGREE * (1 + scale)).all())
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= AGREE * (1 + abs(b)) or a == b
    if name in ("witness", "mode"):
        return name == "witness" or a == b  # which of two equal rows is named may differ
    return type(a) is type(b) and is_dataclass(a) and all(_agree(a, b, f.name) for f in fields(a))
