"""Vector stores: where a project's points of a space live."""

from typing import TYPE_CHECKING

from embed_pipeline.home import Home

if TYPE_CHECKING:
    from embed_pipeline.settings import Settings
    from embed_pipeline.stores.protocol import VectorStore


def open_store(settings: "Settings") -> "VectorStore":
    """Open the Qdrant server at QDRANT_URL, or else the embedded store in EMBED_HOME.

    Touches neither until used. Close it, so that other processes need not wait.
    """
    # Each is imported where it is chosen: qdrant-client alone takes a second.
    if settings.qdrant_url:
        from embed_pipeline.stores.qdrant_server import connect

        return connect(
            settings.qdrant_url,
            settings.qdrant_api_key,
            settings.qdrant_grpc_port,
            settings.qdrant_quantization,
        )
    from embed_pipeline.stores.qdrant_edge import QdrantEdgeStore

    return QdrantEdgeStore(Home(settings.home).qdrant, settings.store_wait_seconds)
