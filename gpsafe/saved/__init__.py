"""Models, confidence sets, safe sets and certificates on the disk: `save` and `load`; certificates for other programs."""

from gpsafe.saved.export import export_bound, export_invariance, export_plan
from gpsafe.saved.export_map import export_map
from gpsafe.saved.export_policy import export_membership
from gpsafe.saved.file import FORMAT, load, save

__all__ = [
    "FORMAT",
    "export_bound",
    "export_invariance",
    "export_map",
    "export_membership",
    "export_plan",
    "load",
    "save",
]
