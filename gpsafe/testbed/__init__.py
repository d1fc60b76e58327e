"""What people run: checks and their verification, experiments, stored results, reports. Knows nothing of Gaussian processes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
