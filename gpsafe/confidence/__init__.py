"""Confidence bounds and sets."""

from gpsafe.confidence.bounds import ConfidenceBound, Mixture
from gpsafe.confidence.set import ConfidenceSet, Falsification

__all__ = ["ConfidenceBound", "ConfidenceSet", "Falsification", "Mixture"]
