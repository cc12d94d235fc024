"""Who may call, and what they may read."""

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.limits import RateLimit
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ProjectNotFound, SourceRefused

if TYPE_CHECKING:
    from embed_pipeline.sources.supervisely_callers import Callers, Standing

TOKEN_HEADER = "X-Supervisely-Token"  # noqa: S105  # a header's name
# Who has not shown the key in a header may be nobody, and every body is read before it is looked at.
STRANGERS_BODY_BYTES = 1_000_000

_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="EMBED_API_KEY")
_bearer = HTTPBearer(auto_error=False, description="EMBED_API_KEY")
_token = APIKeyHeader(
    name=TOKEN_HEADER,
    auto_error=False,
    scheme_name="SuperviselyToken",
    description="the caller's own token of the Supervisely instance; also in a body, as the "
    "services take it: `api_token`, or `context.apiToken`",
)


@dataclass(frozen=True)
class Shown:
    """What a request shows of who sends it."""

    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


async def shown(
    request: Request,
    key: Annotated[str | None, Depends(_key)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    token: Annotated[str | None, Depends(_token)],
) -> Shown:
    """What the request shows, in its headers or in its body."""
    gate: Gate = request.app.state.gate
    if token is None and gate.callers:
        token = await _token_in_body(request)
    return Shown(key or (bearer.credentials if bearer else None), token)


@dataclass(frozen=True)
class Caller:
    """Who asks, let in. name: whom limits count. token, user_id: of the Supervisely instance, if given."""

    name: str
    gate: "Gate" = field(repr=False)
    token: str | None = field(default=None, repr=False)
    user_id: int | None = None


def require_caller(request: Request, shown: Annotated[Shown, Depends(shown)]) -> Caller:
    """Who asks. Raises ApiError: 401 for who may not, 429 for who asks too often."""
    gate: Gate = request.app.state.gate
    return gate.admit(request.client.host if request.client else "unknown", shown)


def require_project(caller: Caller, project: str) -> None:
    """Raise ApiError unless there is such a project, and the caller may read it."""
    caller.gate.require_project(caller, project)


def readable(caller: Caller, projects: Iterable[str]) -> set[str]:
    """Those of `projects` that the caller may read, by one listing where an instance must be asked."""
    callers = caller.gate.callers
    if not (callers and caller.token):
        return set(projects)
    return set(projects) & callers.projects(caller.token)


def require_offered(caller: Caller, project: str, *, working: bool = False) -> None:
    """As `require_project`, and the instance offers AI search for it.

    working: something will be done to the project, so that the instance is asked also about callers
    without a token. Raises ApiError: 403 for a team's plan, 409 where AI search is off.
    """
    require_project(caller, project)
    if caller.token is None and not working:
        return
    standing = caller.gate.standing(caller, project)
    if standing and not standing.has_search:
        said = f"Team {standing.team_id} with 'free' plan cannot use AI features."
        raise ApiError(HTTPStatus.FORBIDDEN, "plan_without_search", said)
    if standing and standing.enabled is False:
        said = f"[Project: {project}] AI Search is disabled. Switch it on in Supervisely"
        raise ApiError(HTTPStatus.CONFLICT, "search_disabled", said)


class Gate:
    """Lets callers in by the API key, or by their own token of the Supervisely instance.

    Without an API key everybody is let in: `serve` then listens on this machine only.
    """

    def __init__(self, deployment: Deployment) -> None:
        settings = deployment.settings
        self._deployment = deployment
        self._key = settings.api_key
        self._most_bytes = settings.api_max_body_bytes
        self._requests = RateLimit(settings.api_requests_per_minute)
        self._refusals = RateLimit(settings.api_requests_per_minute)
        self.callers: Callers | None = None
        if settings.is_supervisely:
            from embed_pipeline.sources.opening import open_callers

            self.callers = open_callers(settings)

    def admit(self, host: str, shown: Shown) -> Caller:
        """The caller at this address. Raises ApiError with 401 or 429."""
        self._refusals.check(host)
        try:
            caller = self._identified(host, shown)
        except ApiError:
            self._refusals.count(host)
            raise
        self._requests.count(caller.name)
        return caller

    def _identified(self, host: str, shown: Shown) -> Caller:
        if self._key and shown.key is not None and not self.is_key(shown.key):
            raise _unauthorized("the API key is not the one of EMBED_API_KEY; send that")
        if self.callers and shown.token is not None:
            user_id = _user_id(self.callers, shown.token)
            return Caller(f"user {user_id}", self, shown.token, user_id)
        if self._key and shown.key is None:
            raise _unauthorized(self._what_to_show)
        return Caller(host, self)

    def is_key(self, shown: str) -> bool:
        """Whether this is the API key, compared in constant time."""
        return hmac.compare_digest(shown.encode(), (self._key or "").encode())

    def most_bytes(self, headers: Headers) -> int:
        """How long a body the sender of these headers may send."""
        _, _, bearer = headers.get("authorization", "").partition(" ")
        known = not self._key or self.is_key(headers.get("x-api-key", bearer))
        return self._most_bytes if known else min(self._most_bytes, STRANGERS_BODY_BYTES)

    def require_project(self, caller: Caller, project: str) -> None:
        """See the function of this name."""
        if self.callers and caller.token is not None:
            self.standing(caller, project)
            return
        # A source that is away keeps nobody from searching what is indexed.
        known = self._deployment.project_home(project).root.is_dir()
        if not known and project not in self._deployment.source.projects():
            raise ApiError(HTTPStatus.NOT_FOUND, "project_not_found", f"{project}: no such project")

    def standing(self, caller: Caller, project: str) -> "Standing | None":
        """What the instance tells the caller of a project; None where the source is none.

        Raises ApiError where it does not let them read it.
        """
        if not self.callers:
            return None
        try:
            return self.callers.standing(project, caller.token)
        except ProjectNotFound as error:
            raise ApiError(HTTPStatus.NOT_FOUND, "project_not_found", str(error)) from error
        except SourceRefused as error:
            said = f"{project}: the Supervisely instance does not let you read this project"
            raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", said) from error

    def close(self) -> None:
        """Let go of connections."""
        if self.callers:
            self.callers.close()

    @property
    def _what_to_show(self) -> str:
        told = "send the API key as header X-API-Key, or as Authorization: Bearer"
        return f"{told}; or your own Supervisely token as {TOKEN_HEADER}" if self.callers else told


def is_loopback(host: str) -> bool:
    """Whether a name or address is only this machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_same_server(address: str, ours: str | None) -> bool:
    """Whether two addresses of servers, with a scheme or without, are of the same one."""
    return ours is not None and _netloc(address) == _netloc(ours)


def _netloc(address: str) -> str:
    return urlsplit(address if "://" in address else f"//{address}").netloc.lower()


async def _token_in_body(request: Request) -> str | None:
    if not request.headers.get("content-type", "").startswith("application/json"):
        return None
    try:
        body: Any = await request.json()
    except ValueError:
        return None  # the route says what is wrong with it
    if not isinstance(body, dict):
        return None
    context = body.get("context")
    inside = context.get("apiToken") if isinstance(context, dict) else None
    given = body.get("api_token") or inside
    return given if isinstance(given, str) and given else None


def _user_id(callers: "Callers", token: str) -> int:
    try:
        return callers.user_id(token)
    except SourceRefused as error:
        raise _unauthorized(
            f"the Supervisely instance refuses the token of {TOKEN_HEADER}, or of the body; send a valid one"
        ) from error


def _unauthorized(message: str) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, "unauthorized", message)
