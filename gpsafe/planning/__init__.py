"""Receding-horizon planning with Gaussian processes: untrusted proposals, priced by samples, explored with one flag."""

from gpsafe.planning.explorers import EXPLORERS, Explorer, Planner
from gpsafe.planning.icem import ICEM, PUBLISHED, Plan, colored_noise, icem
from gpsafe.planning.practical import FeatureGP, angle_features, fit, untrained
from gpsafe.planning.scores import Constraint, Imagined, imagine, intrinsic_reward, penalised_return
from gpsafe.planning.table import Table, TableError
from gpsafe.planning.tracking import Tracking

__all__ = [
    "EXPLORERS",
    "ICEM",
    "PUBLISHED",
    "Constraint",
    "Explorer",
    "FeatureGP",
    "Imagined",
    "Plan",
    "Planner",
    "Table",
    "TableError",
    "Tracking",
    "angle_features",
    "colored_noise",
    "fit",
    "icem",
    "imagine",
    "intrinsic_reward",
    "penalised_return",
    "untrained",
]
