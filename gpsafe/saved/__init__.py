"""Models, confidence sets, safe sets and certificates on the disk: `save` and `load`."""

from gpsafe.saved.file import FORMAT, load, save

__all__ = ["FORMAT", "load", "save"]
