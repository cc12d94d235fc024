"""What happens at night."""

from functools import partial

import dagster as dg
from dagster._utils.schedules import is_valid_cron_schedule

from embed_pipeline.defs.jobs import audit_projects, clean_up
from embed_pipeline.errors import SettingsError
from embed_pipeline.settings import Settings

CLEAN_UP_AT = "30 4 * * *"


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The nightly audit, at the time of the settings, and the clean-up of old runs."""
    if not is_valid_cron_schedule(settings.audit_schedule):
        raise SettingsError(
            f"EMBED_AUDIT_SCHEDULE={settings.audit_schedule!r}: not a cron schedule; for three o'clock "
            "every night: 0 3 * * *"
        )
    nightly = partial(dg.ScheduleDefinition, default_status=dg.DefaultScheduleStatus.RUNNING)
    return [
        nightly(
            name="nightly_audit",
            job=audit_projects,
            cron_schedule=settings.audit_schedule,
            description="Verifies every project's collection against its source.",
        ),
        nightly(
            name="nightly_clean_up",
            job=clean_up,
            cron_schedule=CLEAN_UP_AT,
            description="Deletes runs older than EMBED_KEEP_RUNS_DAYS.",
        ),
    ]
