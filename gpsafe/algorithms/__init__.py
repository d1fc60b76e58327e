"""Learners: the methods of the papers, to be called on a plant of one's own."""

from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.algorithms.actsafe_continuous import ContinuousActSafe, ContinuousRun
from gpsafe.algorithms.certification import Certification, invariant_about_rest
from gpsafe.algorithms.defaults import sound_learner
from gpsafe.algorithms.episode import Pilot, Trajectory, proposals, unverified_episode, verified_episode
from gpsafe.algorithms.explain import Explanation
from gpsafe.algorithms.from_data import Estimate, estimate
from gpsafe.algorithms.learned import LearnedModel, PracticalModel, TheoryModel, TrueModel
from gpsafe.algorithms.learner import EpisodePolicy, Learner
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.algorithms.safeopt import GoSafe, Margins, SafeOpt, Totals
from gpsafe.algorithms.xmpsc import XMPSC, CertifiedPolicy
from gpsafe.algorithms.xmpsc_state import Standing

__all__ = [
    "XMPSC",
    "ActSafe",
    "ActSafeRun",
    "Certification",
    "CertifiedPolicy",
    "ContinuousActSafe",
    "ContinuousRun",
    "EpisodePolicy",
    "Estimate",
    "Explanation",
    "GoSafe",
    "LearnedModel",
    "Learner",
    "Margins",
    "Pilot",
    "PracticalModel",
    "RecedingActSafe",
    "SafeOpt",
    "Standing",
    "TheoryModel",
    "Totals",
    "Trajectory",
    "TrueModel",
    "estimate",
    "invariant_about_rest",
    "proposals",
    "sound_learner",
    "unverified_episode",
    "verified_episode",
]
