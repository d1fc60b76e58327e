"""Confidence bounds and sets."""

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
from gpsafe.confidence.registry import BOUNDS, make_bound
from gpsafe.confidence.set import ConfidenceSet, Falsification, Memberless, Strayed, strayed

__all__ = [
    "BOUNDS",
    "AbbasiYadkori",
    "ActSafeForm",
    "ChowdhuryGopalan",
    "ConfidenceBound",
    "ConfidenceSet",
    "Constant",
    "ConvexProgram",
    "Falsification",
    "Fiedler",
    "Lederer",
    "Memberless",
    "Mixture",
    "NoiseEnergy",
    "Srinivas",
    "Strayed",
    "make_bound",
    "strayed",
]
