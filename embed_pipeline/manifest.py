"""The manifest: what a project holds now, one row per image."""

import hashlib
import io

import polars as pl

from embed_pipeline.tables import Table

# image_id, dataset_id: unique inside the project, text. content_hash: sha256, 32 bytes; null where
# the source could not read the image. size: bytes. width, height: pixels, null where the header
# does not tell. locator: how the source finds the bytes again.
MANIFEST = Table(
    "manifest",
    1,
    pl.Schema(
        {
            "image_id": pl.String(),
            "dataset_id": pl.String(),
            "dataset_name": pl.String(),
            "name": pl.String(),
            "content_hash": pl.Binary(),
            "updated_at": pl.Datetime("us", "UTC"),
            "size": pl.Int64(),
            "width": pl.Int32(),
            "height": pl.Int32(),
            "locator": pl.String(),
        }
    ),
)


def data_version(manifest: pl.DataFrame) -> str:
    """A digest of what the manifest says of each image, whatever the order of its rows."""
    told = manifest.select("image_id", "dataset_id", "dataset_name", "name", "content_hash")
    buffer = io.BytesIO()
    told.sort("image_id").write_ipc(buffer)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
