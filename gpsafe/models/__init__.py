"""Dynamics models."""

from gpsafe.models._normalizer import Normalizer
from gpsafe.models._refit import Memory, refit
from gpsafe.models._training import Fit, Training
from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.models.ensemble import Ensemble, Linearization
from gpsafe.models.foreign import from_gpytorch
from gpsafe.models.gp import GP, identity_prior, zero_prior
from gpsafe.models.low_rank import LowRankGP
from gpsafe.models.samples import FunctionSamples, sample_at, sample_functions

__all__ = [
    "GP",
    "DynamicsModel",
    "Ensemble",
    "Fit",
    "FunctionSamples",
    "Linearization",
    "LowRankGP",
    "Memory",
    "Normalizer",
    "Prediction",
    "Training",
    "from_gpytorch",
    "identity_prior",
    "refit",
    "sample_at",
    "sample_functions",
    "zero_prior",
]
