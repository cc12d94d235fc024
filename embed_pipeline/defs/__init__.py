"""Dagster: assets, checks, partitions, resources and jobs. Thin: what they do is in `sync.py`."""
