"""The Supervisely SDK, whose every call goes through our own connection."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageFile

from embed_pipeline.errors import SettingsError
from embed_pipeline.patience import Patience
from embed_pipeline.sources.supervisely_http import Connection


@contextmanager
def pillow_as_it_was() -> Iterator[None]:
    """While it is imported, the SDK has Pillow read half an image as a whole one, however large."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def open_sdk(connection: Connection, patience: Patience) -> Any:
    """A `supervisely.Api`; its calls raise what `Connection.post` raises. Takes seconds the first time.

    The SDK's own requests have no deadline, and retry for ten minutes. Raises SettingsError where the
    extra is not installed.
    """
    # Otherwise it looks for the instance on https first, wherever it is told to look.
    os.environ.setdefault("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
    try:
        with pillow_as_it_was():
            from supervisely import Api  # type: ignore[import-untyped]
    except ImportError as error:
        raise SettingsError(
            f"EMBED_SOURCE=supervisely needs the Supervisely SDK ({error}); "
            'pip install "embed-pipeline[supervisely]"; on Debian also: apt install libgl1 libglib2.0-0 '
            "libmagic1"
        ) from error

    class PatientApi(Api):  # type: ignore[misc]  # the SDK has no types
        def post(self, method: str, data: object, *_: object, **__: object) -> Any:
            return connection.post(method, data, patience)

    return PatientApi(connection.where, "", ignore_task_id=True)
