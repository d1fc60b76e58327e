"""Kernels, and functions of their reproducing kernel Hilbert spaces."""

from gpsafe.rkhs import kernels
from gpsafe.rkhs.functions import RKHSFunction, grid, interpolate, random_function

__all__ = ["RKHSFunction", "grid", "interpolate", "kernels", "random_function"]
