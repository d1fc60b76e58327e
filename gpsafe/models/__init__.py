"""Dynamics models."""

from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.models.gp import GP, identity_prior, zero_prior
from gpsafe.models.low_rank import LowRankGP

__all__ = ["GP", "DynamicsModel", "LowRankGP", "Prediction", "identity_prior", "zero_prior"]
