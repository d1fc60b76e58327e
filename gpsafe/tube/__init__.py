"""Tubes: where a plan with feedback can take the plant."""

from gpsafe.tube.core import Linearisation, Mode, Tube, TubeModel, propagate
from gpsafe.tube.ensemble import EnsembleTube, chi_square_radius
from gpsafe.tube.gains import constant_gain, lqr_gain
from gpsafe.tube.gp import GPTube
from gpsafe.tube.known import KnownTube
from gpsafe.tube.koller import Constants, KollerTube
from gpsafe.tube.linear import LinearTube
from gpsafe.tube.sampled import SampledTube, sampled_count, sampled_level

__all__ = [
    "Constants",
    "EnsembleTube",
    "GPTube",
    "KnownTube",
    "KollerTube",
    "LinearTube",
    "Linearisation",
    "Mode",
    "SampledTube",
    "Tube",
    "TubeModel",
    "chi_square_radius",
    "constant_gain",
    "lqr_gain",
    "propagate",
    "sampled_count",
    "sampled_level",
]
