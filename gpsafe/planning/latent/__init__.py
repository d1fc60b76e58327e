"""Exploring in the latent space of a world model: a planner, actor-critics, and the learner around them.

Everything is heuristic and nothing of it enters a certificate: the members of the ensemble are a few samples of nothing that is
known to contain the truth. What that costs is on the page `docs/pixels.md`.
"""

from gpsafe.planning.latent.actor_critic import ActorCritic
from gpsafe.planning.latent.agent import LatentAgent
from gpsafe.planning.latent.checkpoints import Checkpoint
from gpsafe.planning.latent.dreams import Dream, dream
from gpsafe.planning.latent.episodes import Episodes, Seen
from gpsafe.planning.latent.estimate import Estimate, estimate
from gpsafe.planning.latent.explorers import LATENT_EXPLORERS, LatentExplorer
from gpsafe.planning.latent.penalties import Barrier, Multiplier
from gpsafe.planning.latent.planner import LatentPlanner
from gpsafe.planning.latent.policy import Behaviour, Iteration, LatentPolicy
from gpsafe.planning.latent.presets import PRESETS, ActorCriticSettings
from gpsafe.planning.latent.returns import lambda_returns
from gpsafe.planning.latent.sights import cartpole_sight, empty_scene, pendulum_sight, point_goal_sight
from gpsafe.planning.latent.training import Schedule
from gpsafe.planning.latent.world import Sight, World

__all__ = [
    "LATENT_EXPLORERS",
    "PRESETS",
    "ActorCritic",
    "ActorCriticSettings",
    "Barrier",
    "Behaviour",
    "Checkpoint",
    "Dream",
    "Episodes",
    "Estimate",
    "Iteration",
    "LatentAgent",
    "LatentExplorer",
    "LatentPlanner",
    "LatentPolicy",
    "Multiplier",
    "Schedule",
    "Seen",
    "Sight",
    "World",
    "cartpole_sight",
    "dream",
    "empty_scene",
    "estimate",
    "lambda_returns",
    "pendulum_sight",
    "point_goal_sight",
]
