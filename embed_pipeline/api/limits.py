"""What a request may take: requests in a minute, bytes, time. And what nobody expected, caught."""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

import anyio
from fastapi import HTTPException
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_pipeline.api.errors import RETRY_AFTER_SECONDS, ApiError, explained, problem


class RateLimit:
    """So many requests in a minute from each caller. To be shared between threads."""

    def __init__(self, per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(per_minute)
        self._windows = FixedWindowRateLimiter(MemoryStorage())

    def count(self, caller: str) -> None:
        """One more from this caller. Raises ApiError where that is too many."""
        if not self._windows.hit(self._item, caller):
            raise self._too_many(caller)

    def check(self, caller: str) -> None:
        """Raise ApiError where the caller has none left; counts nothing."""
        if not self._windows.test(self._item, caller):
            raise self._too_many(caller)

    def _too_many(self, caller: str) -> ApiError:
        begins_anew = self._windows.get_window_stats(self._item, caller).reset_time
        wait = max(1, round(begins_anew - time.time()))
        return ApiError(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too_many_requests",
            f"more than {self._item.amount} requests in a minute; wait {wait} s "
            "(EMBED_API_REQUESTS_PER_MINUTE)",
            retry_after_seconds=wait,
        )


class BodyLimit:
    """Refuses bodies that are too long, before they are read where their length is told.

    most_bytes: what the sender of such headers may send.
    """

    def __init__(self, app: ASGIApp, most_bytes: Callable[[Headers], int]) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = self._most_bytes(headers)
        told = headers.get("content-length", "0")
        if told.isdecimal() and int(told) > most:
            await problem(_too_large(most))(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                # FastAPI takes other errors while it reads a body for bad requests.
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(_too_large(most)))
            return message

        await self._app(scope, counted, send)


class TimeLimit:
    """Answers with 503 where nothing was answered in time, and with 500 where the app failed.

    What runs in a thread cannot be ended: it goes on, and its answer is thrown away. It keeps its
    place among the threads until then, so that there are never more of them.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds
        self._unfinished: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        work = anyio.CancelScope()
        task = asyncio.create_task(self._work(work, answer, scope, receive))
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        await asyncio.wait({task}, timeout=self._seconds)
        if task.done() or answer.begun:
            await task
            return
        answer.send = _nobody
        work.cancel()
        await problem(_too_late(self._seconds))(scope, receive, send)

    async def _work(
        self, work: anyio.CancelScope, answer: "_Answer", scope: Scope, receive: Receive
    ) -> None:
        with work:
            try:
                await self._app(scope, receive, answer)
            except Exception as error:
                if answer.begun:
                    raise
                await problem(explained(error))(scope, receive, answer)


class _Answer:
    """Passes an answer on, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self.send(message)


async def _nobody(_: Message) -> None:
    """Where answers go that come too late."""


def _too_large(most: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request_entity_too_large",
        f"the body is larger than {most:,} bytes; send less at once (EMBED_API_MAX_BODY_BYTES)",
    )


def _too_late(seconds: float) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "timeout",
        f"no answer within {seconds:g} s; ask for less, or try again (EMBED_API_TIMEOUT_SECONDS)",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
