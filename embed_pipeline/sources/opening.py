"""The source that the settings name."""

import hashlib
from pathlib import Path

from embed_pipeline.errors import SettingsError
from embed_pipeline.home import Home
from embed_pipeline.settings import SAMPLE, Settings
from embed_pipeline.sources.folder import FolderSource
from embed_pipeline.sources.protocol import ImageSource


def open_source(settings: Settings, home: Home) -> ImageSource:
    """The source of EMBED_SOURCE. Raises SettingsError for a form that is not known."""
    root = _root(settings.source, home)
    source_id = settings.source_id or _derived_id(root)

    def hashes_of(project: str) -> Path:
        return home.project(f"{source_id}/{project}").hashes

    return FolderSource(root, source_id, hashes_of)


def _root(source: str, home: Home) -> Path:
    if source == SAMPLE:
        if not home.sample.is_dir():
            raise SettingsError(
                "EMBED_SOURCE is not set and there is no sample project yet; set "
                "EMBED_SOURCE=folder:/path/to/root, or run: embed-pipeline demo"
            )
        return home.sample
    scheme, _, path = source.partition(":")
    if scheme != "folder" or not path:
        raise SettingsError(
            f"EMBED_SOURCE={source!r}: not a source; use folder:/path/to/root, where each sub-folder "
            "is a project, or leave it unset for the sample project"
        )
    return Path(path).expanduser().absolute()


def _derived_id(root: Path) -> str:
    """The root's name and a digest of its path: another root of the same name is another source."""
    digest = hashlib.sha256(bytes(root)).hexdigest()[:8]
    return f"{root.name or 'root'}-{digest}".encode(errors="replace").decode()
