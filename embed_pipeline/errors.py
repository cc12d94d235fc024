"""Every error that embed-pipeline raises on purpose.

EmbedPipelineError
├── SettingsError           a setting is missing, malformed or contradicts another
├── TableError              a table of ours is damaged, or was written by a newer version
│   └── TableMissing        it was not made yet: the step before this one never ran
├── SourceError             the source cannot be listed or read
│   ├── ProjectNotFound     no such project in the source
│   ├── SourceRefused       the instance refuses the token or the request
│   └── SourceUnavailable   the root or instance does not answer               (retryable)
├── ImageError              one image cannot be embedded; carries stage, reason, transient
├── ModelError              a model cannot be loaded or does not do what it must
│   ├── ModelNotFound       no weights under that name here
│   └── ServiceAway         (remote_service.py) the model's machine does not answer (retryable)
├── StoreError              the vector store refused or failed
│   ├── CollectionMissing   the project has no collection in that space
│   ├── InvalidPoints       NaN, infinite or mis-sized vectors: refused before the call
│   ├── StoreLocked         another process holds the collection               (retryable)
│   └── StoreUnavailable    the server does not answer, or cannot just now     (retryable)
├── QueryError              a query is empty, or names an image that is nowhere
├── Locked                  (locks.py) a file of ours is in use by another process (retryable)
├── LeaseHeld               another run works on the project                   (retryable)
├── ProjectPaused           somebody paused the project; nobody works on it until it is resumed
├── RunNotStopped           a run of the project goes on although it was told to stop
├── RemovalWithheld         more removals than the guard allows; confirm or repair the source
├── AuditFailed             the collection does not equal the source
│   └── QualityGateFailed   a new space does not find what it must; search stays on the old one
├── NothingToRollBack       there is no previous space to go back to
├── NotWritable             EMBED_HOME may not be written
└── OutOfSpace              the disk under EMBED_HOME is full; nothing recorded is lost

Messages are one line: the thing, the reason, the remedy.
"""

from typing import ClassVar, Literal

Stage = Literal["fetch", "decode", "encode", "store"]


class EmbedPipelineError(Exception):
    """Base of the tree. `retryable`: the same call may succeed later with nothing changed."""

    retryable: ClassVar[bool] = False


class SettingsError(EmbedPipelineError):
    """A setting is missing, malformed or contradicts another."""


class TableError(EmbedPipelineError):
    """A table of ours is damaged, or was written by a newer version."""


class TableMissing(TableError):
    """The table was not made yet: the step before this one never ran."""


class SourceError(EmbedPipelineError):
    """The source cannot be listed or read."""


class ProjectNotFound(SourceError):
    """No such project in the source."""


class SourceRefused(SourceError):
    """The instance refuses the token or the request; that does not pass by itself."""


class SourceUnavailable(SourceError):
    """The root or instance does not answer; it may later."""

    retryable = True


class ImageError(EmbedPipelineError):
    """One image cannot be embedded. Never stops a project: it becomes a row of the failures table.

    `stage` is where it happened, `reason` a short stable code such as `truncated`, and
    `transient` says whether the same bytes may succeed later.
    """

    def __init__(self, stage: Stage, reason: str, detail: str, *, transient: bool = False) -> None:
        super().__init__(f"{stage}: {reason}: {detail}")
        self.stage: Stage = stage
        self.reason = reason
        self.detail = detail
        self.transient = transient


class ModelError(EmbedPipelineError):
    """A model cannot be loaded or does not do what it must."""


class ModelNotFound(ModelError):
    """No weights under that name on this machine, and none could be fetched."""


class StoreError(EmbedPipelineError):
    """The vector store refused or failed."""


class CollectionMissing(StoreError):
    """The project has no collection in that space: never synced, or its store was deleted."""


class InvalidPoints(StoreError):
    """Vectors are NaN, infinite, mis-sized or not as many as their points."""


class StoreLocked(StoreError):
    """Another process holds the collection longer than we may wait."""

    retryable = True


class StoreUnavailable(StoreError):
    """The server does not answer, or cannot do it just now; it may later."""

    retryable = True


class QueryError(EmbedPipelineError):
    """A query is empty, or names an image that is nowhere."""


class LeaseHeld(EmbedPipelineError):
    """Another run works on the project."""

    retryable = True


class ProjectPaused(EmbedPipelineError):
    """Somebody paused the project; nobody works on it until it is resumed."""


class RunNotStopped(EmbedPipelineError):
    """A run of the project goes on although it was told to stop."""


class RemovalWithheld(EmbedPipelineError):
    """A sync would remove more than the guard allows. Additions went in, nothing was removed.

    `count` is the number of removals that a confirmation must name.
    """

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class AuditFailed(EmbedPipelineError):
    """The collection does not equal the source."""


class QualityGateFailed(AuditFailed):
    """A new space does not find what it must; search stays on the old one."""


class NothingToRollBack(EmbedPipelineError):
    """There is no previous space to go back to."""


class NotWritable(EmbedPipelineError):
    """EMBED_HOME may not be written."""


class OutOfSpace(EmbedPipelineError):
    """The disk under EMBED_HOME is full."""
