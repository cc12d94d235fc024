"""Checks of everything that a sync needs; each says what is wrong and how to mend it."""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from embed_pipeline.dagster_home import shipped
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.durable import replace_durably
from embed_pipeline.errors import EmbedPipelineError

LOW_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and in words how it is."""

    what: str
    ok: bool
    finding: str


def examine() -> list[Finding]:
    """All checks, in the order in which they build on each other."""
    try:
        opened = open_deployment()
    except EmbedPipelineError as error:
        return [Finding("settings", ok=False, finding=str(error))]
    checks: dict[str, Callable[[Deployment], str]] = {
        "settings": _settings,
        "home": _home,
        "source": _source,
        "model": _model,
        "store": lambda deployment: deployment.store.check(),
        "dagster": _dagster,
    }
    with closing(opened) as deployment:
        return [_checked(what, check, deployment) for what, check in checks.items()]


def _checked(what: str, check: Callable[[Deployment], str], deployment: Deployment) -> Finding:
    try:
        return Finding(what, ok=True, finding=check(deployment))
    except (EmbedPipelineError, OSError) as error:
        return Finding(what, ok=False, finding=str(error))


def _settings(deployment: Deployment) -> str:
    settings = deployment.settings
    return f"EMBED_SOURCE={settings.source}, EMBED_MODEL={settings.model}"


def _home(deployment: Deployment) -> str:
    root = deployment.home.root
    replace_durably(root / "doctor", lambda path: path.write_text("writable"))
    (root / "doctor").unlink()
    free = shutil.disk_usage(root).free
    if free < LOW_DISK_BYTES:
        raise OSError(f"{root}: only {free / 1e9:.1f} GB free; make room, or set EMBED_HOME")
    return f"{root}: writable, {free / 1e9:.0f} GB free"


def _source(deployment: Deployment) -> str:
    names = deployment.source.projects()
    if not names:
        raise OSError(
            f"EMBED_SOURCE={deployment.settings.source}: no projects; put images into sub-folders of it, "
            "or enable AI search in Supervisely"
        )
    left_out = [
        f"; left out, {why}: {len(projects)} ({', '.join(projects[:3])}…)"
        for why, projects in deployment.source.left_out().items()
    ]
    told = f"{deployment.source.source_id}: {len(names)} projects ({', '.join(names[:3])}…)"
    return "".join([told, *left_out])


def _model(deployment: Deployment) -> str:
    card = deployment.card
    encoder = deployment.encoder(card)
    vectors = encoder.encode_texts(["a photo"]).vectors
    how = f"runs {card.own_name}" if card.own_name else "loaded"
    return f"{card.name}: {how}, {vectors.shape[1]} dimensions, space {card.space}"


def _dagster(deployment: Deployment) -> str:
    from embed_pipeline.runs import dagster_instance

    home = deployment.settings.dagster_home
    with dagster_instance(deployment.settings) as instance:
        told = f"{home}: {instance.get_runs_count()} runs"
    ours = (home / "dagster.yaml").read_bytes() == shipped("dagster.yaml").read_bytes()
    return told if ours else f"{told}; its dagster.yaml is not the one that came with this version"
