"""Errors and stops as a run's page shows them: one sentence with its remedy, not a stack trace."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from embed_pipeline.errors import EmbedPipelineError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def explained(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turn our errors into Dagster's Failure, which the UI shows as text; say what a stop leaves."""

    @wraps(step)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return step(*args, **kwargs)
        except EmbedPipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        except dg.DagsterExecutionInterruptedError:
            log = dg.AssetExecutionContext.get().log
            log.warning("stopped: what was embedded is kept, and the next run goes on from there")
            raise

    return run
