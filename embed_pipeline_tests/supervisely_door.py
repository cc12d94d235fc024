"""The door of a stand-in Supervisely instance: HTTP on a local port."""

# ruff: noqa: D102  # methods are named, and said what they do, by http.server

import json
import re
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Event
from typing import Any, Protocol
from urllib.parse import unquote

from embed_pipeline_tests.supervisely_faults import Fault
from embed_pipeline_tests.supervisely_instance import LINKS, STORAGE, Instance
from embed_pipeline_tests.supervisely_lists import Body, Reply, not_found

API = re.compile(r"(?:/public/api)?/v3/(.+)")
PREVIEW = re.compile(r"(?:/previews)?/q/ext:jpeg/resize:fit:(\d+):(\d+):0/q:(\d+)/plain/(.+)")


class Desk(Protocol):
    """Who answers behind the door."""

    instance: Instance
    unknown: list[str]
    hurry: Event

    def counted(self, kind: str) -> AbstractContextManager[None]: ...
    def fault_for(self, kind: str, asked: Body) -> Fault: ...
    def call(self, name: str, body: Body, token: str | None, address: str) -> Reply: ...
    def preview(self, place: str, width: int, height: int, quality: int) -> Reply: ...
    def original(self, place: str) -> Reply: ...
    def administer(self, asked: Body) -> Reply: ...
    def state(self) -> Body: ...


class Door(ThreadingHTTPServer):
    """The port, and the connections that are open."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, desk: Desk, address: tuple[str, int]) -> None:
        self.desk = desk
        self.closed = False
        self._connections: set[socket.socket] = set()
        super().__init__(address, Exchange)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks for the host's name, which can take seconds
        self.server_port = int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours; anything else is a fault of this double."""
        if not isinstance(error := sys.exception(), OSError):
            self.desk.unknown.append(f"the stand-in failed: {error!r}")

    def close(self) -> None:
        """Close the port, and every connection, whatever is under way."""
        self.closed = True
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Exchange(BaseHTTPRequestHandler):
    """A connection and the request that it carries now: the surface that faults work on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # headers and a small body go out together
    server: Door

    @property
    def desk(self) -> Desk:
        return self.server.desk

    def finish(self) -> None:
        """End the connection. Where the client went away, what was still to be sent cannot be."""
        with suppress(OSError):
            super().finish()
        self.rfile.close()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            return self._unknown()
        if self.path == "/admin":
            return self.send(self.desk.administer(body))
        if not (known := API.fullmatch(self.path)):
            return self._unknown()
        token, address = self.headers.get("x-api-key"), f"http://{self.headers.get('Host')}"
        call = partial(self.desk.call, known[1], body, token, address)
        return self._answer(known[1], body, lambda: self._in_range(call()))

    def do_GET(self) -> None:
        if self.path == "/admin/state":
            return self.send(Reply.of(self.desk.state()))
        asked = {"path": self.path}
        if found := PREVIEW.fullmatch(self.path):
            width, height, quality, place = found.groups()
            place = place if "://" in unquote(place) else f"/{place}"
            size = (int(width), int(height), int(quality))
            return self._answer("preview", asked, partial(self.desk.preview, place, *size))
        if self.path.startswith((STORAGE, LINKS)):
            return self._answer("original", asked, partial(self.desk.original, self.path))
        return self._unknown()

    @property
    def instance(self) -> Instance:
        return self.desk.instance

    def wait(self, seconds: float) -> bool:
        """Whether the server is still there then; ends early when it heals."""
        self._hurry.wait(seconds)
        return not self.server.closed

    def send(self, reply: Reply) -> None:
        """The whole reply."""
        self.head(reply)
        self.write(reply.body)

    def head(self, reply: Reply) -> None:
        """Its beginning."""
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()

    def write(self, data: bytes) -> None:
        """A part of the body, at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def hang_up(self) -> None:
        """End the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.desk.unknown.append(f"not HTTP as we speak it: {message}")
        self.hang_up()

    def _answer(self, kind: str, asked: Body, work: Callable[[], Reply]) -> None:
        self.work, self._hurry = work, self.desk.hurry
        try:
            with self.desk.counted(kind):
                self.desk.fault_for(kind, asked)(self)
        except OSError:
            self.hang_up()

    def _in_range(self, reply: Reply) -> Reply:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked or reply.status != 200:
            return reply
        end = int(asked[2]) + 1 if asked[2] else None
        return Reply(206, reply.body[int(asked[1]) : end], reply.headers)

    def _unknown(self) -> None:
        self.desk.unknown.append(f"{self.command} {self.path}")
        self.send(not_found())
