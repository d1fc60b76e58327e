"""Sets of states and inputs."""

from gpsafe.sets._containment import Containment
from gpsafe.sets.box import Box
from gpsafe.sets.ellipsoid import Ellipsoid
from gpsafe.sets.polytope import Polytope, convex_hull
from gpsafe.sets.zonotope import Zonotope

__all__ = [
    "Box",
    "Containment",
    "Ellipsoid",
    "Polytope",
    "Zonotope",
    "convex_hull",
]
