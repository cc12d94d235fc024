"""Measurements: `python -m benchmarks.NAME` prints one JSON line with the figure and the machine."""
