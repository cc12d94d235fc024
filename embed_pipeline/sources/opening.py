"""The source that the settings name."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embed_pipeline.errors import SettingsError
from embed_pipeline.home import Home
from embed_pipeline.settings import SAMPLE, Settings
from embed_pipeline.sources.folder import FolderSource
from embed_pipeline.sources.protocol import ImageSource

if TYPE_CHECKING:
    from embed_pipeline.sources.supervisely_callers import Callers
    from embed_pipeline.sources.supervisely_http import Address


def open_source(settings: Settings, home: Home) -> ImageSource:
    """The source of EMBED_SOURCE. Asks it nothing. Raises SettingsError for a form that is not known."""
    return _instance(settings, home) if settings.is_supervisely else _folder(settings, home)


def open_callers(settings: Settings) -> "Callers":
    """What the users of the instance may do there, by their own tokens. Raises SettingsError."""
    from embed_pipeline.sources.supervisely_callers import ASKED, Callers
    from embed_pipeline.sources.supervisely_http import Connection

    return Callers(Connection(_address(settings), calls=ASKED, looks=ASKED))


def _folder(settings: Settings, home: Home) -> ImageSource:
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
            "is a project, or supervisely, or leave it unset for the sample project"
        )
    return Path(path).expanduser().absolute()


def _derived_id(root: Path) -> str:
    """The root's name and a digest of its path: another root of the same name is another source."""
    digest = hashlib.sha256(bytes(root)).hexdigest()[:8]
    return f"{root.name or 'root'}-{digest}".encode(errors="replace").decode()


def _instance(settings: Settings, home: Home) -> ImageSource:
    from embed_pipeline.sources.supervisely import SuperviselySource
    from embed_pipeline.sources.supervisely_http import Connection

    connection = Connection(_address(settings), at_once=settings.downloads)
    source_id = settings.source_id or urlsplit(connection.where).netloc

    def links_of(project: str) -> Path:
        return home.project(f"{source_id}/{project}").links

    return SuperviselySource(
        connection,
        source_id,
        links_of,
        resizer=settings.imgproxy_address,
        originals=settings.originals,
    )


def _address(settings: Settings) -> "Address":
    from embed_pipeline.sources.supervisely_http import Address

    server = _server(settings.server_address)
    if not (settings.api_token or settings.api_access_token):
        raise SettingsError(
            "EMBED_SOURCE=supervisely, but API_TOKEN is not set; use a token of a user who may edit the "
            "projects (in Supervisely: account settings, API token)"
        )
    internal = settings.api_server_address
    return Address(
        server=server,
        api_token=settings.api_token,
        api=_with_scheme(internal) if internal else None,
        access_token=settings.api_access_token,
    )


def _server(address: str | None) -> str:
    server = _with_scheme(address or "")
    if not urlsplit(server).hostname:
        raise SettingsError(
            f"EMBED_SOURCE=supervisely, but SERVER_ADDRESS={address!r}: must be like "
            "https://app.supervisely.com"
        )
    return server


def _with_scheme(address: str) -> str:
    """As the SDK takes addresses: without a scheme they are of http."""
    full = address.strip() if "://" in address else f"http://{address.strip()}"
    return full.rstrip("/")
