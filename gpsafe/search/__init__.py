"""Searches over continuous policy parameters. They propose; `gpsafe.safe_parameters` decides."""

from gpsafe.search.acquisition import BotorchSearch, RolloutAcquisition
from gpsafe.search.baselines import FiniteGrid, RandomSearch
from gpsafe.search.lagrangian import AugmentedLagrangian
from gpsafe.search.log_barrier import LogBarrier
from gpsafe.search.problem import Problem, Proposals, Search
from gpsafe.search.rollouts import Rollouts

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
