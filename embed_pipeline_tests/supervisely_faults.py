"""What a stand-in Supervisely instance can do instead of answering properly."""

from collections.abc import Callable
from typing import Any, Protocol

from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_lists import Reply

PIECES = 20


class Exchange(Protocol):
    """A request that waits for its answer. work: what makes it."""

    work: Callable[[], Reply]

    @property
    def instance(self) -> Instance:
        """Whose answer it is."""

    def wait(self, seconds: float) -> bool:
        """Whether the server is still there then; ends early when it heals."""

    def send(self, reply: Reply) -> None:
        """Send it whole."""

    def head(self, reply: Reply) -> None:
        """Send its status and headers."""

    def write(self, data: bytes) -> None:
        """Send a part of its body."""

    def hang_up(self) -> None:
        """End the connection."""


Fault = Callable[[Exchange], None]


def answered(exchange: Exchange) -> None:
    """No fault."""
    exchange.send(exchange.work())


def status(code: int, headers: dict[str, str] | None = None, body: Any = None) -> Fault:
    """Answer with an error, having done nothing."""
    said = {"error": "as told by the test", "details": {"message": "as told by the test"}}
    reply = Reply.of(said if body is None else body, code, headers)
    return lambda exchange: exchange.send(reply)


def slow(seconds: float) -> Fault:
    """Begin late, or when healed."""

    def fault(exchange: Exchange) -> None:
        if exchange.wait(seconds):
            answered(exchange)

    return fault


def trickle(seconds: float) -> Fault:
    """Send the body in small pieces over this time."""

    def fault(exchange: Exchange) -> None:
        reply = exchange.work()
        exchange.head(reply)
        step = -(-len(reply.body) // PIECES) or 1
        for start in range(0, len(reply.body), step):
            if exchange.wait(seconds / PIECES):
                exchange.write(reply.body[start : start + step])

    return fault


def cut() -> Fault:
    """Close the connection without an answer, having done nothing."""
    return lambda exchange: exchange.hang_up()


def cut_midway() -> Fault:
    """Do it, and close the connection after half of the body."""

    def fault(exchange: Exchange) -> None:
        reply = exchange.work()
        exchange.head(reply)
        exchange.write(reply.body[: len(reply.body) // 2])
        exchange.hang_up()

    return fault


def wrong_bytes(data: bytes | None = None) -> Fault:
    """Send these bytes, or the right ones but the last, under the right ones' headers."""

    def fault(exchange: Exchange) -> None:
        reply = exchange.work()
        wrong = reply.body[:-1] + bytes([reply.body[-1] ^ 1]) if data is None else data
        exchange.send(Reply(reply.status, wrong, reply.headers))

    return fault


def answer(content: Any) -> Fault:
    """Say this, having done nothing."""
    reply = Reply.of(content)
    return lambda exchange: exchange.send(reply)


def not_json() -> Fault:
    """A page as a proxy shows it, with status 200, having done nothing."""
    page = Reply(200, b"<html><body>Please wait</body></html>", {"Content-Type": "text/html"})
    return lambda exchange: exchange.send(page)


def then(change: Callable[[Instance], Any]) -> Fault:
    """Change the instance first: for lists that change while they are read."""

    def fault(exchange: Exchange) -> None:
        change(exchange.instance)
        answered(exchange)

    return fault
