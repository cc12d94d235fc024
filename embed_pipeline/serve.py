"""The HTTP service as a process."""

from dataclasses import replace

from embed_pipeline.api.security import is_loopback
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import SettingsError
from embed_pipeline.settings import Settings
from embed_pipeline.terminal import say

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
# Requests under way, and connections that are kept open for more.
MOST_AT_ONCE = 1000
LAST_WORD_SECONDS = 10


def serve(deployment: Deployment, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
    """Answer requests until interrupted. What uses the deployment's models shares them.

    Raises SettingsError for an address that others can reach, where there is no EMBED_API_KEY.
    """
    import uvicorn

    from embed_pipeline.api.app import create_app

    _say_who_may_call(deployment.settings, host)
    _say_whether_runs_start(deployment.settings)
    say(f"embed-pipeline answers at http://{_in_url(host)}:{port}")
    shared = replace(deployment, share_encoders=True)
    uvicorn.run(
        create_app(shared),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # /metrics counts requests; their addresses tell what was searched for
        # Whoever is believed about where a request is from could call from anywhere.
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=LAST_WORD_SECONDS,
    )
    shared.close()


def _say_who_may_call(settings: Settings, host: str) -> None:
    if settings.api_key is not None:
        return
    if not is_loopback(host):
        raise SettingsError(
            f"--host {host}: others could reach it, and everybody may ask; set EMBED_API_KEY to a secret "
            "of 16 characters or more, or listen on 127.0.0.1"
        )
    say("EMBED_API_KEY is not set: only this machine may call, and everybody on it may")


def _say_whether_runs_start(settings: Settings) -> None:
    from embed_pipeline.api.dagster_runs import is_up

    if not is_up(settings.dagster_url):
        say(
            f"no Dagster at EMBED_DAGSTER_URL={settings.dagster_url}: until there is, runs are neither "
            "started nor stopped from here; start it: embed-pipeline dev"
        )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
