"""What a source is told of a run: that it works on a project, and how it ended.

That may change the project's token at the source: it must not look as if its images had changed.
"""

import logging
from collections.abc import Collection
from dataclasses import replace

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import EmbedPipelineError, LeaseHeld
from embed_pipeline.lease import lease
from embed_pipeline.manifest import data_version
from embed_pipeline.project_run import ProjectRun

logger = logging.getLogger(__name__)

KILLED = "the run that embedded this project was killed; the next one goes on where it stopped"


def end(run: ProjectRun, error: str | None) -> str | None:
    """Tell the source that the run ended. Returns the revision that a failed run leaves behind.

    None where the run made the collection equal to the source, or the source does not answer. Raises
    nothing that the source raises: what it shows wrongly is put right by `clear_leftovers`.
    """
    source = run.deployment.source
    try:
        if not source.end(run.project, error):
            return None
        _, token = source.revision(run.project)
        state = CollectionState.read(run.home.state)
        if state is None or state.run_id != run.run_id or not state.equal:
            return run.deployment.revision(token)
        if token != state.revision and data_version(run.listed()) == data_version(run.manifest()):
            replace(state, revision=token).write(run.home.state)
    except EmbedPipelineError as failed:
        logger.warning("%s: the source was not told how the run ended: %s", run.project, failed)
    return None


def clear_leftovers(deployment: Deployment, unfinished: Collection[str]) -> None:
    """Correct what the source shows of projects that no run works on.

    unfinished: projects with a queued or working run, as Dagster told after the source was listed.
    """
    for project in sorted(deployment.source.working() - set(unfinished)):
        try:
            with lease(deployment.project_home(project), project, "clear a flag", wait_seconds=0):
                deployment.source.end(project, KILLED)
        except LeaseHeld:  # a run of the command line, or one that began just now
            continue
        except EmbedPipelineError as error:
            logger.warning("%s: shown as worked on, and is not: %s", project, error)
        else:
            logger.warning("%s: shown as worked on by a run that was killed; not any more", project)
