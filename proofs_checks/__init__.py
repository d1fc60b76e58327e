"""Executable theorems: one file per theorem, found automatically by :func:`gpsafe.testbed.check.discover`."""
