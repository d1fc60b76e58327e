"""Plants, their known parts, costs and tasks. ``import gpsafe.systems.envs`` registers them with Gymnasium."""

from gpsafe.systems.adapt import KnownFunction, episode, from_casadi, from_numpy, from_ode, plant
from gpsafe.systems.base import (
    CallableSystem,
    Cost,
    HalfspaceCost,
    HingeCost,
    IndicatorCost,
    KnownPart,
    System,
    sample_noise,
    step,
)
from gpsafe.systems.cartpole import CartPole, CartPoleKnown
from gpsafe.systems.cartpole_policies import CartPolePolicies, hanging_lqr
from gpsafe.systems.chain import chain, chain_policies
from gpsafe.systems.derived import DerivedCost, DerivedKnown, derived_known
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.known import AffineKnown, SineKnown, pendulum_known
from gpsafe.systems.pendulum import Pendulum, wrap_angle
from gpsafe.systems.real import RealPlant
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin, TwinError, exact_twin, twin
from gpsafe.systems.synthetic import rkhs_1d, rkhs_2d
from gpsafe.systems.task import Task
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum

__all__ = [
    "AffineKnown",
    "CallableSystem",
    "CartPole",
    "CartPoleKnown",
    "CartPolePolicies",
    "Cost",
    "DerivedCost",
    "DerivedKnown",
    "DoubleIntegrator",
    "HalfspaceCost",
    "HingeCost",
    "IndicatorCost",
    "KnownFunction",
    "KnownPart",
    "Pendulum",
    "RKHSTwin",
    "RealPlant",
    "SafeCartPole",
    "SimplePendulum",
    "SineKnown",
    "System",
    "Task",
    "TwinError",
    "chain",
    "chain_policies",
    "derived_known",
    "episode",
    "exact_twin",
    "from_casadi",
    "from_numpy",
    "from_ode",
    "hanging_lqr",
    "pendulum_known",
    "plant",
    "reference_1d",
    "reference_1d_policies",
    "reference_pendulum",
    "reference_pendulum_policies",
    "rkhs_1d",
    "rkhs_2d",
    "sample_noise",
    "step",
    "twin",
    "wrap_angle",
]
