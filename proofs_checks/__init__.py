"""Executable theorems: one file per theorem, found automatically by :func:`gpsafe.checks.discover`."""
