"""Policies and their classes: finite, of features, of continuous parameters; closed loops under them."""

from gpsafe.policies.features import Feature, FeaturePolicies, pendulum_coefficients, pendulum_features
from gpsafe.policies.finite import (
    AffinePolicies,
    CurvedPolicyClass,
    Feedback,
    PolicyClass,
    feedback,
    input_at,
    inputs_at,
    selected,
    set_point_policies,
)
from gpsafe.policies.parametric import ParametricPolicies, feedback_family, input_gap, set_point_family
from gpsafe.policies.rollout import closed_loop, transitions

__all__ = [
    "AffinePolicies",
    "CurvedPolicyClass",
    "Feature",
    "FeaturePolicies",
    "Feedback",
    "ParametricPolicies",
    "PolicyClass",
    "closed_loop",
    "feedback",
    "feedback_family",
    "input_at",
    "input_gap",
    "inputs_at",
    "pendulum_coefficients",
    "pendulum_features",
    "selected",
    "set_point_family",
    "set_point_policies",
    "transitions",
]
