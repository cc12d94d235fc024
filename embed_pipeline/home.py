"""Where things lie under EMBED_HOME. All but the vector library can be lost and is rebuilt."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from embed_pipeline.durable import replace_durably


@dataclass(frozen=True)
class Home:
    """The directory EMBED_HOME."""

    root: Path

    def project(self, project_id: str) -> "ProjectHome":
        """A project's own tables. The folder's name is a hash: project names may hold anything."""
        return ProjectHome(self.root / "projects" / _key(project_id), project_id)

    def vectors(self, space: str) -> Path:
        """The vector library's parts of a space."""
        return self.root / "vectors" / space

    def vector_spaces(self) -> list[Path]:
        """The parts' directories of every space."""
        return sorted({part.parent for part in self.root.glob("vectors/*/part-*.parquet")})

    @property
    def qdrant(self) -> Path:
        """The embedded store."""
        return self.root / "qdrant"

    @property
    def models(self) -> Path:
        """Digests of model directories, so that weights are hashed once."""
        return self.root / "models"

    @property
    def sample(self) -> Path:
        """The sample project's root folder."""
        return self.root / "sample"

    @property
    def encoder_turns(self) -> Path:
        """Held for one forward pass by each of the runs that encode at the same time."""
        return self.root / "encoder.lock"

    def noticed(self, source_id: str) -> Path:
        """What the sensor knows of a source's projects."""
        return self.root / "noticed" / f"{_key(source_id)}.parquet"

    def project_ids(self) -> list[str]:
        """Every project, of any source, that has tables here."""
        notes = self.root.glob("projects/*/project.json")
        return sorted(json.loads(note.read_text())["project_id"] for note in notes)


@dataclass(frozen=True)
class ProjectHome:
    """One project's tables, its lease, and which space it is served from."""

    root: Path
    project_id: str

    def make(self) -> None:
        """Create the folder, with a note of whose it is for people who look inside."""
        note = self.root / "project.json"
        if not note.exists():
            text = json.dumps({"project_id": self.project_id}, indent=2)
            replace_durably(note, lambda path: path.write_text(text))

    @property
    def manifest(self) -> Path:
        """What the source held at the last scan."""
        return self.root / "manifest.parquet"

    def space(self, space: str) -> "SpaceHome":
        """The tables that each space has of its own."""
        return SpaceHome(self.root / "spaces" / space)

    def spaces(self) -> list["SpaceHome"]:
        """Those of every space."""
        return [SpaceHome(path) for path in sorted(self.root.glob("spaces/*"))]

    @property
    def failures(self) -> Path:
        """Contents that could not be embedded."""
        return self.root / "failures.parquet"

    @property
    def state(self) -> Path:
        """Counts and audit of the last sync."""
        return self.root / "collection_state.parquet"

    @property
    def hashes(self) -> Path:
        """The folder source's cache of content hashes."""
        return self.root / "hashes.parquet"

    @property
    def links(self) -> Path:
        """The Supervisely source's keys of linked images."""
        return self.root / "links.parquet"

    @property
    def progress(self) -> Path:
        """How far the run is that works on the project."""
        return self.root / "progress.json"

    @property
    def pause(self) -> Path:
        """Whether nobody may work on the project, or when it was let go on."""
        return self.root / "pause.json"

    @property
    def serving(self) -> Path:
        """Which space search uses."""
        return self.root / "serving.json"

    @property
    def lease(self) -> Path:
        """Held by the one run that works on the project."""
        return self.root / "lease.lock"


@dataclass(frozen=True)
class SpaceHome:
    """What a project has once for each space that follows the source."""

    root: Path

    @property
    def diff(self) -> Path:
        """What the last diff found to do."""
        return self.root / "diff.parquet"

    @property
    def suspects(self) -> Path:
        """Points whose stored vector `verify --vectors` found altered."""
        return self.root / "suspects.parquet"

    @property
    def calibration(self) -> Path:
        """What unrelated queries find in the project: what confidence is measured against."""
        return self.root / "calibration.npz"

    @property
    def forced(self) -> Path:
        """Contents that must be encoded anew, whatever vector they have."""
        return self.root / "forced.parquet"


def _key(name: str) -> str:
    """A file name for any name."""
    return hashlib.sha256(name.encode()).hexdigest()[:20]
