"""A Supervisely instance as a source: what a look asks of it, and how fast its images become vectors.

    python -m benchmarks.supervisely [--images 20000]

Prints one JSON line. The instance is a stand-in in a process of its own, which answers each preview
after LATENCY_SECONDS, and one in SLOW_EVERY after SLOW_SECONDS. `look`: one look of the sensor at
PROJECTS projects of which CHANGED changed. `steady`, `some_slow`: a first sync without and with the
slow images. Its ceilings are a bare client with as many connections (`link`), the same sync of an
instance that answers at once (`no_latency`), and one of the same pictures in a folder (`folder`).
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Any, Self
from unittest.mock import patch

import httpx
import numpy as np
from PIL import Image

from benchmarks.machine import machine, versions
from embed_pipeline import embedding
from embed_pipeline.changes import Noticed, write_noticed
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.runs import dagster_instance
from embed_pipeline.sync import sync
from embed_pipeline.watching import look_around
from embed_pipeline_tests.supervisely_faults import Exchange, answered
from embed_pipeline_tests.supervisely_records import Image as Held
from embed_pipeline_tests.supervisely_server import StandIn

TEAMS = 5
PROJECTS = 500
PROJECT_IMAGES = 20
CHANGED = 3
MOST_ASKED = 20

LATENCY_SECONDS = 0.05
SLOW_SECONDS = 8.0
SLOW_EVERY = 1_000
ORIGINAL = (1600, 1200)
PREVIEWS = 64  # different ones, shown in turn
CEILING_IMAGES = 3_000
