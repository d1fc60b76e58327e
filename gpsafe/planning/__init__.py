"""Receding-horizon planning with Gaussian processes: untrusted proposals, priced by samples, explored with one flag."""

from gpsafe.planning.explorers import EXPLORERS, Explorer, Planner
from gpsafe.planning.icem import ICEM, PUBLISHED, Plan, colored_noise, icem
from gpsafe.planning.log_barrier import Adam, BarrierStep, Descent, barrier_step, log_barrier_descent
from gpsafe.planning.practical import FeatureGP, angle_features, fit, untrained
from gpsafe.planning.quadratics import Quadratics
from gpsafe.planning.scores import Constraint, Imagined, imagine, intrinsic_reward, penalised_return
from gpsafe.planning.table import Table, TableError
from gpsafe.planning.tracking import Tracking

__all__ = [
    "EXPLORERS",
    "ICEM",
    "PUBLISHED",
    "Adam",
    "BarrierStep",
    "Constraint",
    "Descent",
    "Explorer",
    "FeatureGP",
    "Imagined",
    "Plan",
    "Planner",
    "Quadratics",
    "Table",
    "TableError",
    "Tracking",
    "angle_features",
    "barrier_step",
    "colored_noise",
    "fit",
    "icem",
    "imagine",
    "intrinsic_reward",
    "log_barrier_descent",
    "penalised_return",
    "untrained",
]
