"""What is known of a project while its tables stay as they are."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import CollectionMissing, NotWritable, OutOfSpace
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ModelCard, Vectors
from embed_pipeline.search import calibration
from embed_pipeline.search.calibration import Calibration
from embed_pipeline.search.null_texts import NULL_TEXTS
from embed_pipeline.stores.protocol import Collection
from embed_pipeline.vector_library import VectorLibrary

TEXTS_KEPT = 1000


@dataclass(frozen=True)
class View:
    """A project as searches see it, in the space that it is served from."""

    deployment: Deployment
    project: str
    card: ModelCard
    _texts: dict[str, tuple[Vectors, bool]] = field(default_factory=dict)

    @cached_property
    def collection(self) -> Collection:
        """The project's points."""
        return self.deployment.collection(self.project, self.card)

    @cached_property
    def library(self) -> VectorLibrary:
        """The space's vectors."""
        return self.deployment.library(self.card)

    @cached_property
    def manifest(self) -> pl.DataFrame:
        """What the source held at the last scan, sorted by image id."""
        return MANIFEST.read(self.deployment.project_home(self.project).manifest).sort("image_id")

    def rows_of(self, image_ids: pl.Series) -> dict[str, int]:
        """The manifest's rows, by number, of those images that it has: found without looking at others."""
        ids = self.manifest["image_id"]
        at = zip(image_ids, ids.search_sorted(image_ids), strict=True)
        return {id_: row for id_, row in at if row < len(ids) and ids[row] == id_}

    @cached_property
    def calibration(self) -> Calibration:
        """What unrelated queries find here: as kept by an earlier search, or measured now."""
        home = self.deployment.project_home(self.project)
        path = home.space(self.card.space).calibration
        state = CollectionState.read(home.state)
        version = f"{state.run_id if state else ''} {self.card.space}"
        kept = calibration.read(path)
        if state and kept and kept[0] == version:
            return kept[1]
        measured = self._measured(kept[1] if kept else None)
        with suppress(OutOfSpace, NotWritable):  # it only saves time
            calibration.write(measured, version, path)
        return measured

    def encoded(self, texts: Sequence[str]) -> list[tuple[Vectors, bool]]:
        """Each text's vector, and whether its end did not fit the model.

        The last ones are remembered: in bf16 a vector depends a little on what shares its forward pass, and
        the pages of an answer must not.
        """
        known = {text: self._texts[text] for text in texts if text in self._texts}
        if unknown := [text for text in dict.fromkeys(texts) if text not in known]:
            found = self.deployment.encoder(self.card).encode_texts(unknown)
            pairs = zip(found.vectors, found.truncated, strict=True)
            known |= dict(zip(unknown, pairs, strict=True))
            if len(self._texts) > TEXTS_KEPT:
                self._texts.clear()
            self._texts.update(known)
        return [known[text] for text in texts]

    def _measured(self, earlier: Calibration | None) -> Calibration:
        contents = self.manifest["content_hash"].drop_nulls().unique()
        sample = calibration.sample_of(self.library, contents)
        if not len(sample):
            # None of the few contents that were drawn is embedded yet.
            sample = calibration.sample_of(self.library, self.library.known(contents))
        if not len(sample):
            raise never_synced(self.project)
        texts = earlier.nulls["text"] if earlier else self._null_texts()
        return calibration.calibrate(sample, len(contents), texts)

    def _null_texts(self) -> Vectors:
        return self.deployment.encoder(self.card).encode_texts(NULL_TEXTS).vectors


def view_of(deployment: Deployment, project: str) -> View:
    """The project now. Raises CollectionMissing where it was never synced."""
    view = View(deployment, project, deployment.serving_card(project))
    if not view.collection.exists():
        raise never_synced(project)
    return view


def version_of(deployment: Deployment, project: str) -> tuple[tuple[int, int, int] | None, ...]:
    """Which tables a view was made from: it holds as long as this is the same."""
    home = deployment.project_home(project)
    return tuple(map(_stat, (home.manifest, home.state, home.serving)))


def never_synced(project: str) -> CollectionMissing:
    """The error of a project without points."""
    return CollectionMissing(
        f"{project}: nothing to search, it was never synced (or holds no image); "
        f"run: embed-pipeline sync {project}"
    )


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
