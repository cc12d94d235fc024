"""The search page: its files from `page/`, each as it stands there, under a strict policy."""

import hashlib
from functools import cache
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from embed_pipeline.api.errors import ApiError

router = APIRouter(include_in_schema=False)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, and no script can turn text into markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # The page's address holds what was searched for.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, but asked for again each time: after an update no old script meets a new page.
    "Cache-Control": "no-cache",
}


@router.get("/")
def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.get("/static/{name}")
def static(request: Request, name: str) -> Response:
    """A file of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    if name not in _page():
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"{name}: the page has no such file")
    content, kind = _page()[name]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(content, media_type=kind, headers=headers)


@cache
def _page() -> dict[str, tuple[bytes, str]]:
    """Content and type of every file of the page, by name."""
    listed = {file.name: file for file in files("embed_pipeline.api").joinpath("page").iterdir()}
    return {
        name: (file.read_bytes(), kind)
        for name, file in listed.items()
        for suffix, kind in _TYPES.items()
        if name.endswith(suffix)
    }
