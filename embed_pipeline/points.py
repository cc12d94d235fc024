"""What a collection holds: one point per image. Identity and payload, without the vectors."""

import hashlib
import uuid

import polars as pl

# Namespace of our point ids: made once with uuid4, never to change (a change orphans every collection).
POINT_NAMESPACE = uuid.UUID("6f2a0c1e-5a3b-4c0e-9d5e-0b7a4f1d2c93")

# A point's payload as columns. content_hash: sha256, 32 bytes. updated_at: UTC, never compared.
PAYLOAD = pl.Schema(
    {
        "project_id": pl.String(),
        "dataset_id": pl.String(),
        "dataset_name": pl.String(),
        "image_id": pl.String(),
        "name": pl.String(),
        "content_hash": pl.Binary(),
        "updated_at": pl.Datetime("us", "UTC"),
    }
)

# point_id: the 16 bytes of a UUID.
POINTS = pl.Schema({"point_id": pl.Binary(), **PAYLOAD})


def point_ids(project_id: str, image_ids: pl.Series) -> pl.Series:
    """UUIDv5 of (project_id, image_id), as 16 bytes each, in the order of `image_ids`.

    Written out over one shared sha1 state: `uuid.uuid5` takes five times as long, and a diff
    of a million images computes a million of them.
    """
    prefix = hashlib.sha1(
        POINT_NAMESPACE.bytes + project_id.encode() + b"\0", usedforsecurity=False
    )
    ids = [_uuid5(prefix, image_id) for image_id in image_ids]
    return pl.Series("point_id", ids, dtype=pl.Binary)


def _uuid5(prefix: "hashlib._Hash", image_id: str) -> bytes:
    state = prefix.copy()
    state.update(image_id.encode())
    raw = bytearray(state.digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)
