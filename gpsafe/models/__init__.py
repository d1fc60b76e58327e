"""Dynamics models."""

from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.models.gp import GP, identity_prior, zero_prior
from gpsafe.models.low_rank import LowRankGP
from gpsafe.models.samples import FunctionSamples, sample_at, sample_functions

__all__ = [
    "GP",
    "DynamicsModel",
    "FunctionSamples",
    "LowRankGP",
    "Prediction",
    "identity_prior",
    "sample_at",
    "sample_functions",
    "zero_prior",
]
