"""Learners: the methods of the papers, to be called on a plant of one's own."""

from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.algorithms.actsafe_continuous import ContinuousActSafe, ContinuousRun
from gpsafe.algorithms.episode import Trajectory, proposals, unverified_episode, verified_episode

__all__ = [
    "ActSafe",
    "ActSafeRun",
    "ContinuousActSafe",
    "ContinuousRun",
    "Trajectory",
    "proposals",
    "unverified_episode",
    "verified_episode",
]
