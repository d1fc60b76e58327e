"""Searches over continuous policy parameters. They propose; `gpsafe.safety.safe_parameters` decides."""

from gpsafe.planning.search.acquisition import BotorchSearch, RolloutAcquisition
from gpsafe.planning.search.baselines import FiniteGrid, RandomSearch
from gpsafe.planning.search.lagrangian import AugmentedLagrangian
from gpsafe.planning.search.log_barrier import LogBarrier
from gpsafe.planning.search.problem import Problem, Proposals, Search
from gpsafe.planning.search.rollouts import Rollouts

__all__ = [
    "AugmentedLagrangian",
    "BotorchSearch",
    "FiniteGrid",
    "LogBarrier",
    "Problem",
    "Proposals",
    "RandomSearch",
    "RolloutAcquisition",
    "Rollouts",
    "Search",
]
