"""The command line: one command per verb, each a few lines around a function of the same name."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from embed_pipeline.cli_search import Json, Project, diverse, search
from embed_pipeline.errors import EmbedPipelineError, ProjectNotFound, SettingsError
from embed_pipeline.process import collect_rarely, give_way
from embed_pipeline.terminal import (
    print_json,
    print_line,
    print_table,
    progress_bar,
    say,
    show_warnings,
)

if TYPE_CHECKING:
    from embed_pipeline.deployment import Deployment

LEAVES_SEARCH = (
    " any more (it leaves search after two looks of the sensor, or now with: embed-pipeline prune "
    "--absent)"
)

# Imports of what a command needs stand inside it: `--help` is there at once.

app = typer.Typer(
    name="embed-pipeline",
    help="Keeps image projects searchable: syncs them into a Qdrant collection, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(as_json: Json = False) -> None:
    """Make a sample project, sync it through Dagster, search it, draw a contact sheet."""
    from embed_pipeline.demo import run_demo, show

    outcome = run_demo(_deployment())
    print_json(outcome) if as_json else show(outcome)
    raise typer.Exit(1 if outcome.sync.error else 0)


@app.command()
def projects(as_json: Json = False) -> None:
    """List what the source offers, and how far each project is behind."""
    from embed_pipeline.projects import project_statuses

    deployment = _deployment()
    statuses = project_statuses(deployment)
    for reason, names in deployment.source.left_out().items():
        say(f"left out: {reason}: {', '.join(names)}")
    if as_json:
        print_json(statuses)
    else:
        numbered = any(status.project_id != status.name for status in statuses)
        columns = ("name", "images", "indexed", "failed", "behind", "status", "progress")
        print_table(statuses, ("project_id", *columns) if numbered else columns)


@app.command()
def sync(
    project: Annotated[list[str] | None, typer.Argument(help="Names of projects.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All projects of the source.")] = False,
    confirm_removals: Annotated[
        int | None,
        typer.Option(help="Allow the removals that an earlier sync withheld: their number."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Embed everything anew, in place.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 also where images failed.")] = False,
    as_json: Json = False,
) -> None:
    """Make collections equal to their projects: one Dagster run for each."""
    from embed_pipeline.runs import COUNTS, dagster_instance, run_sync

    give_way()
    deployment = _deployment()
    names = _chosen(deployment, project or [], everything=everything)
    if everything:
        names = [name for name in names if not _paused(deployment, name)]
    if confirm_removals is not None and len(names) != 1:
        raise SettingsError("--confirm-removals is for one project: name it")
    outcomes = []
    try:
        with dagster_instance(deployment.settings) as instance:
            for name in names:
                with progress_bar(name) as progress:
                    outcome = run_sync(
                        deployment, instance, name, confirm_removals, progress, force=force
                    )
                if outcome.error:
                    say(f"error: {outcome.error}")
                outcomes.append(outcome)
    except KeyboardInterrupt:
        say("stopped: what was embedded is kept, and the next sync goes on from there")
        raise
    print_json(outcomes) if as_json else print_table(outcomes, ("project_id", "status", *COUNTS))
    failed = any(outcome.error or (strict and outcome.failed) for outcome in outcomes)
    raise typer.Exit(1 if failed else 0)


@app.command()
def stop(project: Project, as_json: Json = False) -> None:
    """Stop a project's queued and working runs; it stays so until its images change."""
    from embed_pipeline.runs import dagster_instance
    from embed_pipeline.stopping import stop_project

    deployment = _deployment()
    name = _known(deployment, project)
    with dagster_instance(deployment.settings) as instance:
        stopped = stop_project(deployment, instance, name)
    print_json(stopped) if as_json else print_line(f"{name}: {stopped}")


@app.command()
def pause(project: Project, as_json: Json = False) -> None:
    """Stop a project, and keep it stopped until it is resumed."""
    from embed_pipeline.runs import dagster_instance
    from embed_pipeline.stopping import pause_project

    deployment = _deployment()
    name = _known(deployment, project)
    with dagster_instance(deployment.settings) as instance:
        stopped = pause_project(deployment, instance, name)
    print_json(stopped) if as_json else print_line(f"{name}: paused; {stopped}")


@app.command()
def resume(project: Project, as_json: Json = False) -> None:
    """Let a paused or stopped project go on: the sensor asks for a run of it."""
    from embed_pipeline.stopping import resume_project

    deployment = _deployment()
    name = _known(deployment, project)
    resumed = resume_project(deployment, name)
    print_json(resumed) if as_json else print_line(f"{name}: {resumed.message}")


@app.command()
def rollback(project: Project, as_json: Json = False) -> None:
    """Search a project in the space of its previous model again; once more undoes that."""
    from embed_pipeline.rollback import roll_back_project

    deployment = _deployment()
    name = _known(deployment, project)
    rolled_back = roll_back_project(deployment, name)
    print_json(rolled_back) if as_json else print_line(f"{name}: searched in {rolled_back.space}")


@app.command()
def prune(
    now: Annotated[
        bool, typer.Option("--now", help="Also vectors that were still in use a short while ago.")
    ] = False,
    absent: Annotated[
        bool, typer.Option("--absent", help="Also projects that the source does not have now.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Drop spaces that nothing serves, and vectors of content that is nowhere any more."""
    from embed_pipeline.prune import prune

    pruned = prune(_deployment(), now=now, absent=absent)
    print_json(pruned) if as_json else print_table(pruned, ("what", "name", "count"))


@app.command()
def verify(
    project: Project,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Also compare stored vectors with the library.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Audit a collection against its source, changing nothing. Exits with 1 where they differ."""
    from embed_pipeline import audit
    from embed_pipeline.lease import lease
    from embed_pipeline.project_run import ProjectRun

    deployment = _deployment()
    [name] = _chosen(deployment, [project], everything=False)
    home, wait = deployment.project_home(name), deployment.settings.lease_wait_seconds
    with lease(home, name, "verify", wait):
        found = audit.verify(ProjectRun(deployment, name, "verify"), vectors=vectors)
    if as_json:
        print_json(found)
    else:
        print_table([found], ("project_id", "indexed", "missing", "stale", "extra", "failed"))
    raise typer.Exit(0 if found.equal else 1)


app.command()(search)
app.command()(diverse)


@app.command()
def dev(port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000) -> None:
    """Open the Dagster UI and daemon on the same data."""
    from embed_pipeline.dev import serve_dagster

    serve_dagster(_deployment(), port)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", envvar="PORT")] = 8000,
) -> None:
    """Answer searches over HTTP, and on a page."""
    from embed_pipeline.serve import serve

    serve(_deployment(), host, port)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check settings, source, store, model, Dagster and disk; say how to mend what is wrong."""
    from embed_pipeline.doctor import examine

    findings = examine()
    print_json(findings) if as_json else print_table(findings, ("ok", "what", "finding"))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def health(as_json: Json = False) -> None:
    """Ask store, model, source, Dagster's daemon and sensor whether they are well. Loads no model."""
    from embed_pipeline.health import health_here

    found = health_here()
    print_json(found) if as_json else print_table(found.rows, ("check", "state"))
    raise typer.Exit(0 if found.status == "healthy" else 1)


def _deployment() -> "Deployment":
    from embed_pipeline.deployment import open_deployment

    show_warnings()
    return open_deployment()


def _chosen(deployment: "Deployment", names: list[str], *, everything: bool) -> list[str]:
    from embed_pipeline.sources.names import typed

    if everything == bool(names):
        raise SettingsError("name the projects to sync, or all of them with --all")
    known = deployment.source.projects()
    chosen = known if everything else [typed(name) for name in names]
    # Before anything is made for it: a mistyped name must not become a partition.
    if strangers := [name for name in chosen if name not in known]:
        for reason, left_out in deployment.source.left_out().items():
            if strangers[0] in left_out:
                raise ProjectNotFound(f"{strangers[0]}: left out: {reason}")
        was_there = deployment.project_home(strangers[0]).root.is_dir()
        raise ProjectNotFound(
            f"{strangers[0]}: no such project in EMBED_SOURCE={deployment.settings.source}"
            + (LEAVES_SEARCH if was_there else "")
            + f"; projects there: {', '.join(known[:10]) or 'none'}"
        )
    return chosen


def _known(deployment: "Deployment", project: str) -> str:
    """A project of the source, or one that was: it can be stopped while the source is away."""
    from embed_pipeline.sources.names import typed

    name = typed(project)
    if not deployment.project_home(name).root.is_dir():
        _chosen(deployment, [project], everything=False)
    return name


def _paused(deployment: "Deployment", project: str) -> bool:
    from embed_pipeline.pause import is_paused

    paused = is_paused(deployment.project_home(project))
    if paused:
        say(f"{project}: paused, left out; to let it go on: embed-pipeline resume {project}")
    return paused


def main() -> None:
    """Run a command. Errors on purpose are one line on stderr, and exit code 1."""
    collect_rarely()
    try:
        app()
    except (EmbedPipelineError, OSError) as error:
        say(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
