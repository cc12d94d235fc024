"""The collection of a space on a server: how it is made, and whether one that is there fits."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from qdrant_client import QdrantClient, models

from embed_pipeline.errors import CollectionMissing, StoreError, StoreUnavailable
from embed_pipeline.stores.qdrant_connection import Call, Connection
from embed_pipeline.stores.records import DATASET_FIELD, PROJECT_FIELD

T = TypeVar("T")
Ask = Callable[[str, Call[models.CollectionInfo]], models.CollectionInfo]
Quantization = Literal["none", "int8"]

SCHEMA_VERSION = 1
_VERSION_FIELD = "embed_pipeline_schema"

# Measured in Qdrant's engine on 20,000 CLIP-like vectors of 512 numbers: of the 50 nearest, 0.977 are
# found so, with int8 as with float16 alone; with the defaults, 0.886 and 0.888. Binary quantization
# finds 0.42 and is not offered.
SEARCH = models.SearchParams(
    hnsw_ef=256,
    quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0),
)


@dataclass(frozen=True)
class Known:
    """What a process has seen of the collections of one server: (name, dimension).

    fit: they fit. whole: they also have their indexes and their version.
    """

    fit: set[tuple[str, int]] = field(default_factory=set)
    whole: set[tuple[str, int]] = field(default_factory=set)


class Schema:
    """One collection, asked about once per process: a search or a write costs one request.

    quantization: of a collection that is yet to be made. `int8`: searched in a copy of a byte per
    number in RAM, the found ones compared again as stored; float16 then lies on disk, so RAM holds
    half as much and recall stays the same. `none`: float16 alone.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        dimension: int,
        quantization: Quantization,
        known: Known,
    ) -> None:
        self._connection = connection
        self._name = name
        self._dimension = dimension
        self._quantization = quantization
        self._known = known
        self._key = (name, dimension)

    def require(self, ask: Ask) -> None:
        """Raise CollectionMissing where there is none, StoreError where it does not fit.

        ask: the connection's `read` or `write`, whichever is as patient as what follows.
        """
        if self._key not in self._known.fit:
            self._check(ask(f"look at {self._name}", self._get))

    def require_version(self, ask: Ask) -> None:
        """As `require`, but for the dimension: what is dropped may be of any."""
        self._check_version(ask(f"look at {self._name}", self._get))

    def ensure(self) -> None:
        """Make the collection where there is none; give it the indexes and the version it lacks."""
        if self._key in self._known.whole:
            return
        try:
            info = self._write("look at", self._get)
        except CollectionMissing:
            info = self._make()
        self._check(info)
        # Whoever made it may have died before it had its indexes, or was an earlier version.
        for index in {PROJECT_FIELD, DATASET_FIELD} - info.payload_schema.keys():
            call = partial(_create_index, name=self._name, index=index)
            self._connection.write_all(f"index {index} of {self._name}", [call])
        if _version(info) is None:
            self._write("mark", partial(_mark, name=self._name))
        self._known.whole.add(self._key)

    def forget(self) -> None:
        """Look again next time: the collection turned out to be gone."""
        self._known.fit.discard(self._key)
        self._known.whole.discard(self._key)

    def _make(self) -> models.CollectionInfo:
        try:
            self._write("make", self._create)
        except StoreUnavailable:
            raise
        except StoreError as refused:
            # Another process may have made it meanwhile, or our own first try before it was cut off.
            with suppress(CollectionMissing):
                return self._write("look at", self._get)
            raise refused from None
        return self._write("look at", self._get)

    def _write(self, verb: str, call: Call[T]) -> T:
        return self._connection.write(f"{verb} {self._name}", call)

    def _get(self, client: QdrantClient) -> models.CollectionInfo:
        return client.get_collection(self._name)

    def _create(self, client: QdrantClient) -> bool:
        quantized = self._quantization == "int8"
        return client.create_collection(
            self._name,
            vectors_config=models.VectorParams(
                size=self._dimension,
                distance=models.Distance.COSINE,
                datatype=models.Datatype.FLOAT16,
                on_disk=quantized,
            ),
            # No graph over all projects, one over each: every search is of one project.
            hnsw_config=models.HnswConfigDiff(m=0, payload_m=16, ef_construct=200),
            quantization_config=_INT8 if quantized else None,
            metadata={_VERSION_FIELD: SCHEMA_VERSION},
        )

    def _check_version(self, info: models.CollectionInfo) -> None:
        version = _version(info)
        if version not in (None, SCHEMA_VERSION):
            raise self._refused(
                f"has schema version {version}, this embed-pipeline knows {SCHEMA_VERSION}; "
                "update embed-pipeline, or delete that collection and sync again"
            )

    def _check(self, info: models.CollectionInfo) -> None:
        self._check_version(info)
        vectors = info.config.params.vectors
        expected = (self._dimension, models.Distance.COSINE)
        if (
            not isinstance(vectors, models.VectorParams)
            or (vectors.size, vectors.distance) != expected
        ):
            raise self._refused(
                f"was not made for one vector of dimension {self._dimension} per point, compared by "
                "cosine; rename or delete that collection and sync again"
            )
        self._known.fit.add(self._key)

    def _refused(self, reason: str) -> StoreError:
        return StoreError(f"{self._name} of Qdrant at {self._connection.where} {reason}")


_INT8 = models.ScalarQuantization(
    scalar=models.ScalarQuantizationConfig(
        type=models.ScalarType.INT8, quantile=0.99, always_ram=True
    )
)


def _version(info: models.CollectionInfo) -> object:
    """None: made before versions were written, or on a server too old to keep them."""
    return (info.config.metadata or {}).get(_VERSION_FIELD)


def _mark(client: QdrantClient, name: str) -> bool:
    return client.update_collection(name, metadata={_VERSION_FIELD: SCHEMA_VERSION})


def _create_index(client: QdrantClient, name: str, index: str) -> models.UpdateResult:
    schema = models.KeywordIndexParams(
        type=models.KeywordIndexType.KEYWORD, is_tenant=index == PROJECT_FIELD
    )
    return client.create_payload_index(name, index, field_schema=schema, wait=True)
