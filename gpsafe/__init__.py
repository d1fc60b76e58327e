"""Safe model-based reinforcement learning with guarantees that can be run.

``import gpsafe as gs`` loads nothing; a name of the face is imported when it is first used (`lazy_loader`, SPEC 1). The stub
file beside this one says what the names are: type checkers and completion read it.
"""

import os

import lazy_loader

# One name for our checks and experiments, gpsafe.proofs_checks and gpsafe.experiments: a wheel has them inside the package,
# a checkout beside it.
_beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.exists(os.path.join(_beside, "proofs_checks", "timings.json")):
    __path__.append(_beside)

__version__ = "0.1.0.dev0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
