"""Experiments: one file each, found by `gpsafe.testbed.experiment.discover`."""
