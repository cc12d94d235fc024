"""How a process of our own treats its machine: only for one that does nothing else."""

import gc
import os

# While a run embeds on two cores, the slowest of a hundred searches takes 42 ms instead of 160
# (benchmarks/search.py, while_writing: other).
NICENESS = 10
# Importing torch, transformers and Dagster makes a million objects, none of them garbage: at Python's 700,
# looking through them takes a tenth of a small sync (benchmarks/start.py). More than this wins nothing.
OBJECTS_BETWEEN_LOOKS = 20_000


def give_way() -> None:
    """Let others on this machine go first, from now on."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)


def collect_rarely() -> None:
    """Start sooner: look for garbage in cycles less often."""
    gc.set_threshold(OBJECTS_BETWEEN_LOOKS)
