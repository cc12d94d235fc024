"""How long the store is waited for."""

from embed_pipeline.patience import Patience

# Somebody may be waiting for a search. A sync rides out the restart of a large server.
READS = Patience(tries=10, try_seconds=10, total_seconds=25)
WRITES = Patience(tries=60, try_seconds=60, total_seconds=300)
