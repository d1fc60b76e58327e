"""Model-based policy optimisation, the agent behind the X-MPSC filter: soft actor-critic on real and virtual transitions.

Nothing here is believed: what it proposes is certified elsewhere.
"""

from gpsafe.planning.mbpo.presets import Preset, preset
from gpsafe.planning.mbpo.replay import Ring, memory, train, transitions
from gpsafe.planning.mbpo.rollouts import Schedule, branch, sampler, starts
from gpsafe.planning.mbpo.sac import SAC, Settings

__all__ = [
    "SAC",
    "Preset",
    "Ring",
    "Schedule",
    "Settings",
    "branch",
    "memory",
    "preset",
    "sampler",
    "starts",
    "train",
    "transitions",
]
