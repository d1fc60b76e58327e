"""Bounds by name, for the command line and the contract tests."""

from __future__ import annotations

from typing import Any

from gpsafe import _require
from gpsafe.confidence.bounds import (
    AbbasiYadkori,
    ActSafeForm,
    ChowdhuryGopalan,
    ConfidenceBound,
    Constant,
    Fiedler,
    Mixture,
    Srinivas,
)
from gpsafe.confidence.convex_program import ConvexProgram
from gpsafe.confidence.lederer import Lederer
from gpsafe.confidence.noise_energy import NoiseEnergy

BOUNDS: dict[str, type[ConfidenceBound]] = {
    bound.name: bound
    for bound in (
        Mixture,
        AbbasiYadkori,
        Fiedler,
        ChowdhuryGopalan,
        ActSafeForm,
        Srinivas,
        ConvexProgram,
        NoiseEnergy,
        Lederer,
        Constant,
    )
}


def make_bound(name: str, **options: Any) -> ConfidenceBound:
    """The bound of that name; refuses unknown names."""
    return BOUNDS[_require.one_of("make_bound", "name", name, BOUNDS)](**options)
