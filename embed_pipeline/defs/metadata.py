"""What a materialisation tells people in the Dagster UI."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.audit import AuditedProjects
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.contact_sheet import Row, Thumbnail, contact_sheet, inline_jpeg
from embed_pipeline.deployment import Deployment
from embed_pipeline.diff import ACTIONS, DIFF, Difference
from embed_pipeline.embedding import Throughput
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.pictures import picture
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.search.query import Answer

Metadata = Mapping[str, dg.MetadataValue | str | int | float]

SHEET_IMAGES = 16
SHEET_COLUMNS = 8
SHEET_SIDE = 96
TABLE_ROWS = 50


def of_manifest(run: ProjectRun, manifest: pl.DataFrame) -> Metadata:
    """Counts of images, datasets and ignored files."""
    return {
        "project": run.deployment.source.title(run.project),
        "images": manifest.height,
        "datasets": manifest["dataset_id"].n_unique(),
        "distinct contents": manifest["content_hash"].n_unique(),
        "megabytes": round(int(manifest["size"].sum()) / 1e6, 2),
        "ignored files": int(MANIFEST.notes(run.home.manifest)["ignored"]),
        "table": dg.MetadataValue.path(run.home.manifest),
    }


def of_diff(run: ProjectRun, difference: Difference) -> Metadata:
    """Images per action."""
    return {
        "images": difference.images,
        "unchanged": difference.unchanged,
        **{action: difference.count(action) for action in ACTIONS},
        "failed before": len(difference.failed),
        "table": dg.MetadataValue.path(run.space_home.diff),
    }


def of_embeddings(run: ProjectRun, throughput: Throughput) -> Metadata:
    """Rates, a sheet of new images, and what failed: in this run, or before it."""
    failures = run.failures()
    told: dict[str, dg.MetadataValue | str | int | float] = {
        "contents embedded": throughput.embedded,
        "failures": failures.height,
    }
    if throughput.embedded:
        told["images per second"] = round(throughput.embedded / throughput.seconds, 1)
        told["encoder seconds per 1,000 images"] = round(
            1000 * throughput.encoder_seconds / throughput.embedded, 2
        )
        new = DIFF.read(run.space_home.diff).filter(action="embed")
        told["new images"] = _sheet(run.deployment, run.project, new)
    told["space"] = run.card.space
    if failures.height:
        columns = ("image_id", "reason", "detail", "stage", "attempts")
        told["table"] = dg.MetadataValue.path(run.home.failures)
        told[_first("failed images", failures.height)] = _table(failures.to_dicts(), columns)
    return told


def of_state(run: ProjectRun, state: CollectionState) -> Metadata:
    """Counts of the sync, and what the audit found."""
    counts = ("images", "unchanged", *ACTIONS, "failed", "indexed")
    return {
        **{name: getattr(state, name) for name in counts},
        "audit": "equal" if state.equal else state.differences,
        "space": state.space,
        "table": dg.MetadataValue.path(run.home.state),
    }


def of_audit(audited: AuditedProjects) -> Metadata:
    """How many projects are equal, which are not, and which could not be verified."""
    differing = [asdict(audit) for audit in audited.audits if not audit.equal]
    told: dict[str, dg.MetadataValue | str | int | float] = {
        "projects": len(audited.audits) + len(audited.skipped),
        "equal": len(audited.audits) - len(differing),
        "different": len(differing),
        "not verified": len(audited.skipped),
    }
    if differing:
        columns = ("project_id", "indexed", "missing", "stale", "extra", "failed")
        told[_first("projects that differ", len(differing))] = _table(differing, columns)
    if audited.skipped:
        why = [{"project_id": name, "reason": why} for name, why in audited.skipped.items()]
        told[_first("why not verified", len(why))] = _table(why, ("project_id", "reason"))
    return told


def of_answer(deployment: Deployment, project: str, answer: Answer) -> Metadata:
    """The hits as a table, and what they look like."""
    manifest = MANIFEST.read(deployment.project_home(project).manifest)
    ids = pl.DataFrame({"image_id": [hit.image_id for hit in answer.hits]}, {"image_id": pl.String})
    found = ids.join(manifest, on="image_id", maintain_order="left")
    columns = ("score", "confidence", "name", "dataset", "image_id", "path")
    hits = [asdict(hit) for hit in answer.hits]
    told: dict[str, dg.MetadataValue | str | int | float] = {
        "hits": len(hits),
        _first("answer", len(hits)): _table(hits, columns),
        "images": _sheet(deployment, project, found),
    }
    if answer.truncated:
        told["cut short by the model"] = "; ".join(answer.truncated)
    return told


def _first(label: str, rows: int) -> str:
    """The label of a table that shows only so many rows."""
    return label if rows <= TABLE_ROWS else f"{label}, the first {TABLE_ROWS}"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dg.TableMetadataValue:
    records = [dg.TableRecord({name: row[name] for name in columns}) for row in rows[:TABLE_ROWS]]
    return dg.MetadataValue.table(
        records, dg.TableSchema([dg.TableColumn(name) for name in columns])
    )


def _sheet(deployment: Deployment, project: str, images: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Thumbnails of the first of some rows of a manifest, or of a diff."""
    shown = images.head(SHEET_IMAGES)
    pictures = [
        picture(deployment, project, locator, content_hash, SHEET_SIDE)
        for locator, content_hash in shown.select("locator", "content_hash").iter_rows()
    ]
    thumbnails = [
        Thumbnail(image, name) for image, name in zip(pictures, shown["name"], strict=True) if image
    ]
    starts = range(0, len(thumbnails), SHEET_COLUMNS)
    rows = [Row("", thumbnails[start : start + SHEET_COLUMNS]) for start in starts]
    return dg.MetadataValue.md(inline_jpeg(contact_sheet(rows, SHEET_SIDE)))
