"""Sets of states and inputs."""

from gpsafe.sets.box import Box

__all__ = ["Box"]
