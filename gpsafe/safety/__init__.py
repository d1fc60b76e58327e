"""What decides: safe policy sets, the shield of plans, the safety filter of a learner's actions."""

from gpsafe.safety.budget import Allowance, BudgetFilter
from gpsafe.safety.certified_map import CertifiedMap, certified_map
from gpsafe.safety.filter import SafetyFilter
from gpsafe.safety.filter_env import SafetyFilterWrapper
from gpsafe.safety.flight import Flight, fly
from gpsafe.safety.gosafe import Boundary, Rollouts
from gpsafe.safety.recovery import Recovery, RecoveryShield
from gpsafe.safety.safe_parameters import SafeParameters, sound_upper
from gpsafe.safety.safe_set import PolicyGap, SafePolicySet, policy_distance, policy_gap, reachable
from gpsafe.safety.safeopt import Beliefs, SafeOptRule, SafeOptSets
from gpsafe.safety.shield import NotCertified, Shield, noise_radius

__all__ = [
    "Allowance",
    "Beliefs",
    "Boundary",
    "BudgetFilter",
    "CertifiedMap",
    "Flight",
    "NotCertified",
    "PolicyGap",
    "Recovery",
    "RecoveryShield",
    "Rollouts",
    "SafeOptRule",
    "SafeOptSets",
    "SafeParameters",
    "SafePolicySet",
    "SafetyFilter",
    "SafetyFilterWrapper",
    "Shield",
    "certified_map",
    "fly",
    "noise_radius",
    "policy_distance",
    "policy_gap",
    "reachable",
    "sound_upper",
]
