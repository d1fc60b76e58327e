from . import (
    algorithms as algorithms,
)
from . import (
    baselines as baselines,
)
from . import (
    calibration as calibration,
)
from . import (
    certify as certify,
)
from . import (
    confidence as confidence,
)
from . import (
    cost as cost,
)
from . import (
    models as models,
)
from . import (
    planning as planning,
)
from . import (
    plotting as plotting,
)
from . import (
    policies as policies,
)
from . import (
    referee as referee,
)
from . import (
    rkhs as rkhs,
)
from . import (
    safety as safety,
)
from . import (
    sets as sets,
)
from . import (
    systems as systems,
)
from . import (
    testbed as testbed,
)
from . import (
    tube as tube,
)
from .algorithms import XMPSC as XMPSC
from .algorithms import ActSafe as ActSafe
from .algorithms import Certification as Certification
from .algorithms import ContinuousActSafe as ContinuousActSafe
from .algorithms import RecedingActSafe as RecedingActSafe
from .algorithms import TheoryModel as TheoryModel
from .algorithms import estimate as estimate
from .algorithms import sound_learner as sound_learner
from .assumptions import Assumption as Assumption
from .calibration import calibrate as calibrate
from .certify import CertificationProblem as CertificationProblem
from .certify import judge as judge
from .comparison import Contest as Contest
from .comparison import compare as compare
from .confidence import ConfidenceSet as ConfidenceSet
from .confidence import Mixture as Mixture
from .cost import (
    AnchorGrid as AnchorGrid,
)
from .cost import (
    Grid as Grid,
)
from .cost import (
    PlanTube as PlanTube,
)
from .cost import (
    RobustDP as RobustDP,
)
from .cost import (
    ScenarioTube as ScenarioTube,
)
from .data import Transitions as Transitions
from .models import GP as GP
from .models import Ensemble as Ensemble
from .planning import ICEM as ICEM
from .planning import Planner as Planner
from .planning.mpc.fast import CondensedSQP as CondensedSQP
from .policies import AffinePolicies as AffinePolicies
from .referee import verify as verify
from .rkhs import kernels as kernels
from .safety import (
    SafePolicySet as SafePolicySet,
)
from .safety import (
    SafetyFilter as SafetyFilter,
)
from .safety import (
    SafetyFilterWrapper as SafetyFilterWrapper,
)
from .safety import (
    Shield as Shield,
)
from .saved import load as load
from .saved import save as save
from .sets import Box as Box
from .sets import Ellipsoid as Ellipsoid
from .sets import Polytope as Polytope
from .systems import (
    AffineKnown as AffineKnown,
)
from .systems import (
    CartPole as CartPole,
)
from .systems import (
    DoubleIntegrator as DoubleIntegrator,
)
from .systems import (
    HingeCost as HingeCost,
)
from .systems import (
    IndicatorCost as IndicatorCost,
)
from .systems import (
    Pendulum as Pendulum,
)
from .systems import (
    RealPlant as RealPlant,
)
from .systems import (
    Task as Task,
)
from .systems import (
    plant as plant,
)
from .systems import (
    twin as twin,
)
from .verdict import Outcome as Outcome
from .verdict import Verdict as Verdict

__version__: str
