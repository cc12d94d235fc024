"""The sensor that notices changes. What it decides is in `changes.py`."""

from contextlib import closing

import dagster as dg

from embed_pipeline.changes import Request
from embed_pipeline.defs.jobs import sync_project
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.resources import REVISION_TAG
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.deployment import open_deployment
from embed_pipeline.settings import Settings
from embed_pipeline.sources.names import partition_key
from embed_pipeline.watching import look_around

# dagster.yaml allows fewer of these at a time than there are slots, so that small runs find one.
LARGE_TAGS = {"embed_pipeline/size": "large", "dagster/priority": "-1"}


def project_changes(settings: Settings) -> dg.SensorDefinition:
    """The sensor, at the interval of the settings."""

    @dg.sensor(
        name="project_changes",
        job=sync_project,
        description=(
            "Looks at every project and asks for a run of each that changed; adds new projects, and "
            "retires those that are gone. A tick's reason says what became of all of them."
        ),
        minimum_interval_seconds=max(1, round(60 * settings.interval)),
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Ask for a run of each project that changed; add new projects, retire those that are gone."""
        instance = context.instance
        with closing(open_deployment()) as deployment:
            tick = look_around(deployment, DagsterRuns(instance))
        # Not by way of the result, which Dagster stores with the tick: 10,000 keys would be in it.
        name = str(projects.name)
        known = set(instance.get_dynamic_partitions(name))
        instance.add_dynamic_partitions(name, sorted(set(map(partition_key, tick.listed)) - known))
        for project in tick.retired:
            instance.delete_dynamic_partition(name, partition_key(project))
        if tick.requests:
            context.log.info(str(tick))
            return dg.SensorResult(run_requests=[_run_request(each) for each in tick.requests])
        return dg.SensorResult(skip_reason=str(tick))

    return look


def _run_request(request: Request) -> dg.RunRequest:
    # No run key: it would stop a project for ever that goes back to an earlier state.
    tags = {REVISION_TAG: request.revision, **(LARGE_TAGS if request.large else {})}
    return dg.RunRequest(partition_key=partition_key(request.project), tags=tags)
