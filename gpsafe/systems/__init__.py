"""Plants, their known parts, costs and tasks. ``import gpsafe.systems.envs`` registers them with Gymnasium."""

from gpsafe.systems.adapt import KnownFunction, episode, from_casadi, from_numpy, from_ode, plant
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.arm_known import Links, TwoLinkArmKnown
from gpsafe.systems.base import (
    CallableSystem,
    Cost,
    HalfspaceCost,
    HingeCost,
    IndicatorCost,
    KnownPart,
    System,
    is_violation,
    sample_noise,
    step,
)
from gpsafe.systems.cartpole import CartPole, CartPoleKnown
from gpsafe.systems.cartpole_policies import CartPolePolicies, hanging_lqr
from gpsafe.systems.chain import chain, chain_policies
from gpsafe.systems.derived import DerivedCost, DerivedKnown, derived_known
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.drone import Drone
from gpsafe.systems.drone_known import DroneKnown
from gpsafe.systems.episodic import Episodic, EpisodicPlant, as_episodic
from gpsafe.systems.known import AffineKnown, SineKnown, pendulum_known
from gpsafe.systems.pendulum import Pendulum, wrap_angle
from gpsafe.systems.point_goal import DiscCost, PointGoal
from gpsafe.systems.real import RealPlant
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.riccati import riccati
from gpsafe.systems.rkhs_twin import RKHSTwin, TwinError, exact_twin, twin
from gpsafe.systems.swing_up import SparseCartPole, SparsePendulum
from gpsafe.systems.synthetic import rkhs_1d, rkhs_2d
from gpsafe.systems.task import Task
from gpsafe.systems.warmup import Mismatch, SafeFraction, WarmUp, mismatch, safe_fraction, warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.systems.xmpsc_known import SafeCartPoleKnown
from gpsafe.systems.xmpsc_local import SafeCartPoleLocal

__all__ = [
    "AffineKnown",
    "CallableSystem",
    "CartPole",
    "CartPoleKnown",
    "CartPolePolicies",
    "Cost",
    "DerivedCost",
    "DerivedKnown",
    "DiscCost",
    "DoubleIntegrator",
    "Drone",
    "DroneKnown",
    "Episodic",
    "EpisodicPlant",
    "HalfspaceCost",
    "HingeCost",
    "IndicatorCost",
    "KnownFunction",
    "KnownPart",
    "Links",
    "Mismatch",
    "Pendulum",
    "PointGoal",
    "RKHSTwin",
    "RealPlant",
    "SafeCartPole",
    "SafeCartPoleKnown",
    "SafeCartPoleLocal",
    "SafeFraction",
    "SimplePendulum",
    "SineKnown",
    "SparseCartPole",
    "SparsePendulum",
    "System",
    "Task",
    "TwinError",
    "TwoLinkArm",
    "TwoLinkArmKnown",
    "WarmUp",
    "as_episodic",
    "chain",
    "chain_policies",
    "derived_known",
    "episode",
    "exact_twin",
    "from_casadi",
    "from_numpy",
    "from_ode",
    "hanging_lqr",
    "is_violation",
    "mismatch",
    "pendulum_known",
    "plant",
    "reference_1d",
    "reference_1d_policies",
    "reference_pendulum",
    "reference_pendulum_policies",
    "riccati",
    "rkhs_1d",
    "rkhs_2d",
    "safe_fraction",
    "sample_noise",
    "step",
    "twin",
    "warm_up_data",
    "wrap_angle",
]
