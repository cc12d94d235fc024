"""One typed settings object, read from the environment. Every field is a line of the README's table."""

import os
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from embed_pipeline.errors import SettingsError

SAMPLE = "sample"
SUPERVISELY = "supervisely"
DEFAULT_MODEL = "openai/clip-vit-base-patch32"
DEMO_MODEL = "demo"


def _absolute(value: object) -> Path:
    return Path(str(value)).expanduser().absolute()


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]


class Settings(BaseSettings):
    """Environment variables with the prefix EMBED_, and the few names that the ecosystem already has."""

    model_config = SettingsConfigDict(env_prefix="EMBED_", env_ignore_empty=True, frozen=True)

    source: str = Field(
        SAMPLE, description="folder:/path/to/root, supervisely, or unset for the sample project"
    )
    source_id: str | None = Field(
        None, description="name of this source in the store; default: derived from EMBED_SOURCE"
    )
    model_name: str | None = Field(
        None,
        validation_alias=AliasChoices("EMBED_MODEL", "EMBEDDING_MODEL"),
        description="demo, a Hugging Face id, a directory in that layout, or a service's http(s)://…",
    )
    home: AbsolutePath = Field(
        default_factory=lambda: user_data_path("embed_pipeline"),
        description="manifests, vector library, embedded Qdrant, Dagster home",
    )
    server_address: str | None = Field(
        None, validation_alias="SERVER_ADDRESS", description="the Supervisely instance"
    )
    api_token: str | None = Field(
        None,
        validation_alias="API_TOKEN",
        description="a token of a user there who may edit the projects",
        repr=False,
    )
    api_server_address: str | None = Field(
        None,
        validation_alias="SUPERVISELY_API_SERVER_ADDRESS",
        description="its API's address inside your network, if that is another",
    )
    api_access_token: str | None = Field(
        None,
        validation_alias="SUPERVISELY_API_ACCESS_TOKEN",
        description="inside your network: instead of API_TOKEN, exchanged for the administrator's",
        repr=False,
    )
    imgproxy_address: str | None = Field(
        None,
        validation_alias="IMGPROXY_ADDRESS",
        description="where it resizes images, if not at /previews of the instance",
    )
    originals: bool = Field(
        False, description="embed Supervisely's images from the originals, not from its previews"
    )
    downloads: int = Field(
        32, ge=1, le=256, description="images that are downloaded from Supervisely at once"
    )
    qdrant_url: str | None = Field(
        None, validation_alias="QDRANT_URL", description="a Qdrant server; unset: embedded Qdrant"
    )
    qdrant_api_key: str | None = Field(
        None, validation_alias="QDRANT_API_KEY", description="its API key", repr=False
    )
    qdrant_grpc_port: int = Field(
        6334,
        validation_alias="QDRANT_GRPC_PORT",
        ge=1,
        le=65535,
        description="its gRPC port; where that does not answer, REST at QDRANT_URL is used",
    )
    qdrant_quantization: Literal["none", "int8"] = Field(
        "int8",
        validation_alias="QDRANT_QUANTIZATION",
        description="how new collections are searched: int8 (half the RAM) or none (float16 alone)",
    )
    dagster_home_path: AbsolutePath | None = Field(
        None, validation_alias="DAGSTER_HOME", description="Dagster's storage"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="where the encoder runs; auto: cuda, then mps, then cpu"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device has it and it agrees with fp32"
    )
    batch_size: int = Field(
        64,
        validation_alias=AliasChoices("EMBED_BATCH_SIZE", "MAX_BATCH_SIZE"),
        ge=1,
        le=4096,
        description="images per forward pass",
    )
    decode_workers: int = Field(
        default_factory=lambda: min(8, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="threads that read and decode images; default: the cores, at most 8",
    )
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="larger images are reported, not decoded"
    )
    max_image_bytes: int = Field(
        200_000_000, ge=1, description="larger files are reported, not read"
    )
    lease_wait_seconds: float = Field(
        30.0, ge=0, description="how long a run waits for another run of the same project"
    )
    store_wait_seconds: float = Field(
        30.0, ge=0, description="how long a turn at the embedded store is waited for"
    )
    model_api_key: str | None = Field(
        None, description="the key that EMBED_MODEL=http(s)://… asks for", repr=False
    )
    api_key: str | None = Field(
        None,
        min_length=16,
        description="what callers of `serve` must send; unset: only this machine may call",
        repr=False,
    )
    api_requests_per_minute: int = Field(
        1200, ge=1, description="requests that one caller of `serve` may send in a minute"
    )
    api_max_body_bytes: int = Field(
        64_000_000, ge=1000, description="larger requests are refused by `serve`"
    )
    api_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="a caller of `serve` is answered by then, with 503 if need be",
    )
    max_texts_per_batch: int = Field(
        100,
        validation_alias="MAX_TEXTS_PER_BATCH",
        ge=1,
        le=2048,
        description="texts in one request for embeddings",
    )
    max_images_per_batch: int = Field(
        20,
        validation_alias="MAX_IMAGES_PER_BATCH",
        ge=1,
        le=2048,
        description="images in one request for embeddings",
    )
    max_image_size: int = Field(
        10_485_760,
        validation_alias="MAX_IMAGE_SIZE",
        ge=1,
        description="bytes of one image that a caller of `serve` sends",
    )
    dagster_url: str = Field(
        "http://127.0.0.1:3000",
        description="the Dagster UI, through which `serve` starts and stops runs",
    )
    image_ids_are_scope: bool = Field(
        False,
        description="`image_ids` of the route /search always says where to search, never for what",
    )
    selection_bytes: int = Field(
        1_000_000_000,
        ge=10_000_000,
        description="memory that a diverse selection may take for vectors",
    )
    interval_minutes: float | None = Field(
        None,
        validation_alias=AliasChoices("EMBED_INTERVAL_MINUTES", "UPDATE_INTERVAL"),
        gt=0,
        le=1440,
        description="how often the sensor looks for changes",
    )
    audit_schedule: str = Field(
        "0 3 * * *", description="when all projects are verified: cron, UTC"
    )
    keep_runs_days: int = Field(
        30, ge=1, description="older runs are deleted from Dagster's storage"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "WARNING",
        validation_alias=AliasChoices("EMBED_LOG_LEVEL", "LOG_LEVEL"),
        description="what is logged to stderr, and in the Dagster UI",
    )

    @property
    def model(self) -> str:
        """The model to embed with: the small one inside the package for the sample project only."""
        return self.model_name or (DEMO_MODEL if self.source == SAMPLE else DEFAULT_MODEL)

    @property
    def is_supervisely(self) -> bool:
        """Whether the source is a Supervisely instance."""
        return self.source == SUPERVISELY

    @property
    def interval(self) -> float:
        """Minutes between two looks for changes: 10 at a Supervisely instance, else 1."""
        return self.interval_minutes or (10.0 if self.is_supervisely else 1.0)

    @property
    def readers(self) -> int:
        """Threads that fetch and decode images."""
        remote = self.downloads if self.is_supervisely else 0
        return max(self.decode_workers, remote)

    @property
    def dagster_home(self) -> Path:
        """Dagster's storage directory."""
        return self.dagster_home_path or self.home / "dagster"


def load_settings() -> Settings:
    """Settings from the environment. Raises SettingsError naming the variable, the value and the reason."""
    try:
        return Settings()  # type: ignore[call-arg]  # every field has a default or an environment name
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explain, error.errors()))) from error


def _explain(error: ErrorDetails) -> str:
    field = str(error["loc"][0])
    name = field if field.isupper() else f"EMBED_{field.upper()}"
    return f"{name}={error['input']!r}: {error['msg']}"
