"""The doors of the double: gRPC's messages and REST's JSON, to and from what qdrant-client takes."""

# ruff: noqa: D102, N802, N815  # methods are named, and said what they do, by gRPC and http.server

import json
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import grpc as wire
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
VERSION = "1.20.0"


class Refused(Exception):
    """The server's answer is an error."""

    def __init__(self, code: str, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


class Cut(Exception):
    """The connection ends without an answer."""


class Desk(Protocol):
    """Who answers behind the doors: a method for each of qdrant-client's. Raises Refused and Cut."""

    def answer(self, door: str, verb: str, key: str | None, **asked: Any) -> Any: ...


class GrpcDoor:
    """A gRPC server behind a wire that can be cut."""

    def __init__(self, desk: Desk, port: int) -> None:
        self._desk = desk
        self._server = wire.server(ThreadPoolExecutor(16))
        grpc.add_PointsServicer_to_server(Points(self), self._server)
        grpc.add_CollectionsServicer_to_server(Collections(self), self._server)
        grpc.add_QdrantServicer_to_server(Root(self), self._server)
        inner = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.wire = Wire(port, inner)

    def answer(self, context: wire.ServicerContext, verb: str, **asked: Any) -> Any:
        """Ask the desk; refusals become statuses, a cut ends all connections."""
        key = dict(context.invocation_metadata()).get("api-key")
        try:
            return self._desk.answer("grpc", verb, key, **asked)
        except Cut:
            self.wire.cut()
            context.abort(wire.StatusCode.CANCELLED, "cut")
        except Refused as refusal:
            if refusal.retry_after is not None:
                context.set_trailing_metadata((("retry-after", str(refusal.retry_after)),))
            context.abort(wire.StatusCode[refusal.code], str(refusal))

    def close(self) -> None:
        """Close the port and every connection."""
        self.wire.close()
        self._server.stop(None).wait()


class Points(grpc.PointsServicer):
    def __init__(self, door: GrpcDoor) -> None:
        self._door = door

    def _updated(self, context: wire.ServicerContext, verb: str, **asked: Any) -> Any:
        result = self._door.answer(context, verb, **asked)
        return grpc.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))

    def Upsert(self, request: Any, context: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        name = request.collection_name
        return self._updated(context, "upsert", name=name, points=points, wait=request.wait)

    def Delete(self, request: Any, context: Any) -> Any:
        selector = GrpcToRest.convert_points_selector(request.points)
        name = request.collection_name
        return self._updated(context, "delete", name=name, selector=selector, wait=request.wait)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        params = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        return self._updated(
            context,
            "create_payload_index",
            name=request.collection_name,
            field=request.field_name,
            params=params,
            wait=request.wait,
        )

    def UpdateBatch(self, request: Any, context: Any) -> Any:
        operations = [GrpcToRest.convert_points_update_operation(o) for o in request.operations]
        results = self._door.answer(
            context,
            "batch_update_points",
            name=request.collection_name,
            operations=operations,
            wait=request.wait,
        )
        return grpc.UpdateBatchResponse(
            result=[RestToGrpc.convert_update_result(result) for result in results]
        )

    def Scroll(self, request: Any, context: Any) -> Any:
        asked = models.ScrollRequest(
            filter=GrpcToRest.convert_filter(request.filter),
            limit=request.limit,
            offset=GrpcToRest.convert_point_id(request.offset)
            if request.HasField("offset")
            else None,
            with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
            with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        records, start = self._door.answer(
            context, "scroll", name=request.collection_name, asked=asked
        )
        page = [r.model_copy(update={"payload": r.payload or {}}) for r in records]
        return grpc.ScrollResponse(
            result=[RestToGrpc.convert_record(record) for record in page],
            next_page_offset=None if start is None else RestToGrpc.convert_extended_point_id(start),
        )

    def Count(self, request: Any, context: Any) -> Any:
        chosen = GrpcToRest.convert_filter(request.filter)
        result = self._door.answer(context, "count", name=request.collection_name, chosen=chosen)
        return grpc.CountResponse(result=RestToGrpc.convert_count_result(result))

    def Query(self, request: Any, context: Any) -> Any:
        asked = GrpcToRest.convert_query_points(request)
        result = self._door.answer(
            context, "query_points", name=request.collection_name, asked=asked
        )
        return grpc.QueryResponse(
            result=[RestToGrpc.convert_scored_point(point) for point in result.points]
        )


class Collections(grpc.CollectionsServicer):
    def __init__(self, door: GrpcDoor) -> None:
        self._door = door

    def List(self, request: Any, context: Any) -> Any:
        listed = self._door.answer(context, "get_collections").collections
        return grpc.ListCollectionsResponse(
            collections=[grpc.CollectionDescription(name=found.name) for found in listed]
        )

    def Get(self, request: Any, context: Any) -> Any:
        info = self._door.answer(context, "get_collection", name=request.collection_name)
        return grpc.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any, context: Any) -> Any:
        options = models.CreateCollection(
            vectors=GrpcToRest.convert_vectors_config(request.vectors_config),
            hnsw_config=GrpcToRest.convert_hnsw_config_diff(request.hnsw_config),
            quantization_config=GrpcToRest.convert_quantization_config(request.quantization_config)
            if request.HasField("quantization_config")
            else None,
            metadata=GrpcToRest.convert_payload(request.metadata),
        )
        done = self._door.answer(
            context, "create_collection", name=request.collection_name, options=options
        )
        return grpc.CollectionOperationResponse(result=done)

    def Update(self, request: Any, context: Any) -> Any:
        metadata = GrpcToRest.convert_payload(request.metadata)
        done = self._door.answer(
            context, "update_collection", name=request.collection_name, metadata=metadata
        )
        return grpc.CollectionOperationResponse(result=done)

    def Delete(self, request: Any, context: Any) -> Any:
        done = self._door.answer(context, "delete_collection", name=request.collection_name)
        return grpc.CollectionOperationResponse(result=done)


class Root(grpc.QdrantServicer):
    def __init__(self, door: GrpcDoor) -> None:
        self._door = door

    def HealthCheck(self, request: Any, context: Any) -> Any:
        self._door.answer(context, "info")
        return grpc.HealthCheckReply(title="double", version=VERSION)


class Wire:
    """Passes bytes between a port and another, until it is cut."""

    def __init__(self, port: int, inner: int) -> None:
        self._inner = inner
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        """End every connection, whatever is under way."""
        while self._ends:
            _hang_up(self._ends.pop())

    def close(self) -> None:
        """Take no more connections either."""
        _hang_up(self._listener)
        self.cut()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                outer, _ = self._listener.accept()
                inner = socket.create_connection(("127.0.0.1", self._inner))
                self._ends += [outer, inner]
                for pair in ((outer, inner), (inner, outer)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    _hang_up(source)
    _hang_up(target)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class RestDoor(ThreadingHTTPServer):
    """An HTTP server that speaks the part of Qdrant's REST that we use."""

    daemon_threads = True

    def __init__(self, desk: Desk, port: int) -> None:
        super().__init__(("127.0.0.1", port), RestHandler)
        self.desk = desk
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port."""
        self.shutdown()
        self.server_close()


_POINTS = "/collections/([^/]+)/points"
_UPSERTED = TypeAdapter(models.PointsBatch | models.PointsList)

# Method, path, qdrant-client's method, and what to make of the body.
ROUTES: list[tuple[str, str, str, Callable[[Any], dict[str, Any]]]] = [
    ("GET", "/", "info", lambda _: {}),
    ("GET", "/collections", "get_collections", lambda _: {}),
    ("GET", "/collections/([^/]+)", "get_collection", lambda _: {}),
    ("DELETE", "/collections/([^/]+)", "delete_collection", lambda _: {}),
    (
        "PUT",
        "/collections/([^/]+)",
        "create_collection",
        lambda body: {"options": models.CreateCollection(**body)},
    ),
    (
        "PATCH",
        "/collections/([^/]+)",
        "update_collection",
        lambda body: {"metadata": body["metadata"]},
    ),
    (
        "PUT",
        "/collections/([^/]+)/index",
        "create_payload_index",
        lambda body: {
            "field": body["field_name"],
            "params": models.KeywordIndexParams(**body["field_schema"]),
        },
    ),
    ("PUT", _POINTS, "upsert", lambda body: {"points": _batch(body)}),
    (
        "POST",
        f"{_POINTS}/batch",
        "batch_update_points",
        lambda body: {"operations": models.UpdateOperations(**body).operations},
    ),
    (
        "POST",
        f"{_POINTS}/delete",
        "delete",
        lambda body: {"selector": models.FilterSelector(**body)},
    ),
    (
        "POST",
        f"{_POINTS}/scroll",
        "scroll",
        lambda body: {"asked": models.ScrollRequest(**body)},
    ),
    (
        "POST",
        f"{_POINTS}/count",
        "count",
        lambda body: {"chosen": models.CountRequest(**body).filter},
    ),
    (
        "POST",
        f"{_POINTS}/query",
        "query_points",
        lambda body: {"asked": models.QueryRequest(**body)},
    ),
]


def _batch(body: Any) -> Any:
    upserted = _UPSERTED.validate_python(body)
    return upserted.batch if isinstance(upserted, models.PointsBatch) else upserted.points


class RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RestDoor

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        for method, pattern, verb, asked_of in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path.path)):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
                asked = dict(zip(["name"], found.groups(), strict=False)) | asked_of(body)
                if "wait" in (options := parse_qs(path.query)):
                    asked["wait"] = options["wait"] == ["true"]
                return self._answer(verb, asked)
        return self._send(404, {"status": {"error": "no such page"}})

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, verb: str, asked: dict[str, Any]) -> None:
        try:
            result = self.server.desk.answer("rest", verb, self.headers["api-key"], **asked)
        except Cut:
            self.close_connection = True
            _hang_up(self.connection)
        except Refused as refusal:
            after = refusal.retry_after
            headers = {} if after is None else {"Retry-After": str(after)}
            body = {"status": {"error": str(refusal)}, "time": 0.0}
            self._send(HTTP_STATUS[refusal.code], body, headers)
        else:
            self._send(200, _as_json(verb, result))

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data)


def _as_json(verb: str, result: Any) -> dict[str, Any]:
    if verb == "info":
        return {"title": "double", "version": VERSION}
    if verb == "scroll":
        result = {"points": result[0], "next_page_offset": result[1]}
    return {"result": to_jsonable_python(result), "status": "ok", "time": 0.0}
