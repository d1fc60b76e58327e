"""Upper bounds of the expected cost of policies over a confidence set, and what they are made of."""

from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.base import CostBound, CostInterval
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Adversary, Hallucinated
from gpsafe.cost.plan_tube import Plans, PlanTube, Verification
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.to_go import CostToGo
from gpsafe.cost.total_variation import TotalVariation

__all__ = [
    "Adversary",
    "AnchorGrid",
    "CostBound",
    "CostInterval",
    "CostToGo",
    "GaussianTube",
    "Grid",
    "Hallucinated",
    "PlanTube",
    "Plans",
    "PrunedSession",
    "RobustDP",
    "Sampled",
    "ScenarioTube",
    "TotalVariation",
    "Verification",
]
