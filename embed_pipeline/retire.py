"""Forgetting a project that the source no longer has. Its vectors stay in the library."""

import shutil

from embed_pipeline.deployment import Deployment
from embed_pipeline.home import ProjectHome
from embed_pipeline.lease import lease


def retire(deployment: Deployment, project: str) -> None:
    """Drop the project's points in every space, and its tables.

    Raises LeaseHeld, having done nothing, where a run works on it.
    """
    home = deployment.project_home(project)
    with lease(home, project, "retire", wait_seconds=0):
        for space in deployment.store.spaces(home.project_id):
            drop_points(deployment, home, space)
        for path in home.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != home.lease:
                path.unlink()


def drop_points(deployment: Deployment, home: ProjectHome, space: str) -> None:
    """Drop the project's points in a space, also where the model that made it is gone."""
    # Dropping does not need the dimension, which that model would tell.
    deployment.store.collection(space, 1, home.project_id).drop()
