"""Keeps other sites' pages, open in a caller's browser, from calling this service."""

from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from embed_pipeline.api.errors import ApiError, problem
from embed_pipeline.api.security import is_loopback

_OURS = ("same-origin", "none")


class SameOrigin:
    """Refuses what a browser says was asked for by another site.

    only_loopback: also refuse what was sent to a name that is not this machine's: another site's name
    can be made to lead here.
    """

    def __init__(self, app: ASGIApp, *, only_loopback: bool) -> None:
        self._app = app
        self._only_loopback = only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and (
            error := self._refusal(scope["method"], Headers(scope=scope))
        ):
            await problem(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self._only_loopback and not is_loopback(_parts(f"//{host}").hostname or ""):
            return ApiError(
                HTTPStatus.FORBIDDEN,
                "host_refused",
                f"Host: {host[:100]}: without EMBED_API_KEY only this machine may call, as localhost or "
                "127.0.0.1",
            )
        origin = headers.get("origin")
        foreign = origin is not None and _parts(origin).netloc != host
        opened = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (headers.get("sec-fetch-site", "none") not in _OURS and not opened):
            return ApiError(
                HTTPStatus.FORBIDDEN, "cross_site", "another site's page may not call this service"
            )
        return None


def _parts(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
