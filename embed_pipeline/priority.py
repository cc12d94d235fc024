"""Runs give way to searches on the same machine: they take what nobody else wants."""

import os

# While a run embeds on two cores, the slowest of a hundred searches takes 42 ms instead of 160
# (benchmarks/search.py, while_writing: other).
NICENESS = 10


def give_way() -> None:
    """Let others on this machine go first, from now on: only for a process that does nothing else."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
