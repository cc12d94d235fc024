"""The Dagster UI and daemon, on the data that the command line works on."""

import os
import sys

from embed_pipeline.dagster_home import shipped
from embed_pipeline.deployment import Deployment
from embed_pipeline.runs import dagster_instance, register_projects
from embed_pipeline.sample import make_sample
from embed_pipeline.settings import SAMPLE


def serve_dagster(deployment: Deployment, port: int) -> None:
    """Make a partition for every project, then become `dagster dev`; does not return.

    Where no source is set, the sample project is made first, so that there is something to see.
    """
    if deployment.settings.source == SAMPLE:
        make_sample(deployment.home.sample)
    # A model from the hub is fetched now, not by the sensor in its first minute.
    _ = deployment.card
    with dagster_instance(deployment.settings) as instance:
        register_projects(deployment, instance)
    options = [
        "--workspace",
        str(shipped("workspace.yaml")),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # Our own interpreter, with the options above.
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *options])  # noqa: S606
