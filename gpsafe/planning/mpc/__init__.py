"""Proposers of plans: fast or slow, none of them is believed (the judge is in `gpsafe.certify`)."""
