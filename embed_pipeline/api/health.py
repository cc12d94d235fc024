"""Whether the service is there, ready and well."""

import logging
from http import HTTPStatus
from threading import Event, Thread
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ModelError
from embed_pipeline.health import Health, health

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 10.0
_UNIT_TOLERANCE = 1e-3

# Open to everybody: they tell nothing but that the service is there. Those of `known_router` are the
# services', under the names that they have there.
open_router = APIRouter(tags=["health"])
known_router = APIRouter(include_in_schema=False)
router = APIRouter(tags=["health"])


class Ready(BaseModel):
    """model: EMBED_MODEL. supports_images: whether images can be embedded, too."""

    status: Literal["ready"]
    model: str
    supports_images: bool


class NotReady(BaseModel):
    """message: why not yet."""

    status: Literal["starting"]
    message: str


class Probe:
    """Makes a vector with the model when the service starts, and again until that succeeds."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stop = Event()
        self.ready: Ready | None = None
        self.why_not = "the model is being loaded"

    def start(self) -> None:
        """Begin, beside everything else."""
        Thread(target=self._probe_until_ready, name="probe", daemon=True).start()

    def stop(self) -> None:
        """Try no more."""
        self._stop.set()

    def _probe_until_ready(self) -> None:
        while not self._stop.is_set():
            try:
                self.ready = self._probe()
            except Exception as error:
                # Whatever it is, it is the answer until a later try succeeds.
                logger.exception("not ready: the model gives no vector; trying again")
                self.why_not = " ".join(str(error).split())
                self._stop.wait(AGAIN_SECONDS)
            else:
                return

    def _probe(self) -> Ready:
        card = self._deployment.card
        vector = self._deployment.encoder(card).encode_texts(["a photo"]).vectors[0]
        if (
            abs(float(np.linalg.norm(vector)) - 1) > _UNIT_TOLERANCE
            or len(vector) != card.dimension
        ):
            raise ModelError(
                f"{card.name}: its vector for a text is not sound; fetch the model again"
            )
        return Ready(status="ready", model=card.name, supports_images=True)


@open_router.get("/health/live")
async def live() -> dict[str, str]:
    """Whether the service answers at all. Needs no thread: these may all be busy."""
    return {"status": "live"}


@known_router.get("/livez")
@known_router.get("/is_alive")
async def alive() -> dict[str, str]:
    """As the services have it."""
    return {"status": "live"}


@open_router.get("/health/ready", responses={503: {"model": NotReady, "description": "Not yet"}})
async def ready(request: Request, response: Response) -> Ready | NotReady:
    """Whether the model has made a vector, so that searches will be answered."""
    probe: Probe = request.app.state.probe
    if probe.ready:
        return probe.ready
    response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return NotReady(status="starting", message=probe.why_not)


@known_router.get("/readyz")
@known_router.get("/is_ready")
@known_router.post("/is_ready")
async def also_ready(request: Request, response: Response) -> Ready | NotReady:
    """As the services have it."""
    return await ready(request, response)


@known_router.post("/is_running")
async def running() -> dict[str, Any]:
    """As the services have it."""
    return {"running": True, "mode": "production"}


@router.get("/health", responses={503: {"model": Health, "description": "Not all is well"}})
def of_services(request: Request, response: Response) -> Health:
    """Qdrant, the model, the source, Dagster's daemon and its sensor; takes ten seconds at most."""
    found = health(request.app.state.deployment, request.app.state.runs.instance)
    if found.status != "healthy":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return found
