#!/bin/sh
# The volume is empty the first time: DAGSTER_HOME gets our dagster.yaml before Dagster looks for one.
# `exec`, so that signals reach the service itself.
set -eu
python -c '
from embed_pipeline.dagster_home import prepare_dagster_home
from embed_pipeline.settings import load_settings
prepare_dagster_home(load_settings())'
exec "$@"
