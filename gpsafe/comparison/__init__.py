"""Models and certifiers on one plant, with the same data, noise and counter; judged by the true plant."""

from gpsafe.comparison.beliefs import Belief, EnsembleBelief, GaussianBelief, believe
from gpsafe.comparison.contest import Contest
from gpsafe.comparison.guards import Guard, Ruling, UnfitError, guard
from gpsafe.comparison.policies import PolicySet
from gpsafe.comparison.run import Budget, Comparison, combinations, compare, contestant, reference, totals
from gpsafe.comparison.tasks import TASKS, task

__all__ = [
    "TASKS", "Belief", "Budget", "Comparison", "Contest", "EnsembleBelief", "GaussianBelief", "Guard", "PolicySet", "Ruling",
    "UnfitError", "believe", "combinations", "compare", "contestant", "guard", "reference", "task", "totals",
]  # fmt: skip
