"""Dynamics models."""

from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.models.gp import GP, identity_prior, zero_prior

__all__ = ["GP", "DynamicsModel", "Prediction", "identity_prior", "zero_prior"]
