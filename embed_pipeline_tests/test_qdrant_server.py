"""The server store on the wire: gRPC and REST, errors of every kind, interrupts, schema.

Against a double of a server (qdrant_double.py): no test here needs a real one, and none was run on one.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from threading import Event, Thread, Timer
from threading import enumerate as enumerate_threads
from typing import Any, NoReturn

import pytest
from polars.testing import assert_frame_equal
from qdrant_client import models

from embed_pipeline import embedding
from embed_pipeline.audit import verify
from embed_pipeline.errors import (
    CollectionMissing,
    EmbedPipelineError,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from embed_pipeline.patience import Patience
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.side_by_side import run_all
from embed_pipeline.stores import qdrant_connection
from embed_pipeline.stores.protocol import Collection
from embed_pipeline.stores.qdrant_connection import Connection, Route
from embed_pipeline.stores.qdrant_server import QdrantServerStore, connect
from embed_pipeline.stores.retrying import READS, WRITES
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many
from embed_pipeline_tests.qdrant_doors import Refused
from embed_pipeline_tests.qdrant_double import (
    Fault,
    QdrantDouble,
    Work,
    cut,
    free_port,
    not_done,
    refuse,
)
from embed_pipeline_tests.store_samples import DIMENSION, points, vectors
from embed_pipeline_tests.test_stores import rows

KEY = "the-secret-key"
NAME = "images_tiny"
CATS = "source/cats"
# As in earnest, but short; and so short that a test can wait for the end.
SHORT = Patience(
    tries=20, try_seconds=1, total_seconds=4, first_wait_seconds=0.02, longest_wait_seconds=0.2
)
BRIEF = replace(SHORT, tries=3)
GREETING_SECONDS = qdrant_connection._GREETING_SECONDS
BUSY = replace(SHORT, tries=1000, total_seconds=1.3)
STEADY = replace(BUSY, total_seconds=30)
BY_BOTH_DOORS = pytest.mark.parametrize("double", ["grpc", "rest"], indirect=True)


@pytest.fixture(scope="module")
def doubles() -> Iterator[dict[str, QdrantDouble]]:
    """A server with both doors, and one with REST's alone."""
    with QdrantDouble() as grpc, QdrantDouble(grpc=False) as rest:
        yield {"grpc": grpc, "rest": rest}


@pytest.fixture
def double(request: pytest.FixtureRequest, doubles: dict[str, QdrantDouble]) -> QdrantDouble:
    """One of them, as new."""
    double = doubles[getattr(request, "param", "grpc")]
    double.reset()
    return double


@pytest.fixture(scope="module", autouse=True)
def time_to_greet() -> Iterator[None]:
    """Where gRPC answers, it is used: on a busy machine, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdrant_connection, "_GREETING_SECONDS", 30)
        yield


@pytest.fixture(scope="module")
def connections() -> Iterator[dict[tuple[str, Patience | None], Connection]]:
    """Connections that were made, to be used again: making one takes as long as most tests."""
    made: dict[tuple[str, Patience | None], Connection] = {}
    yield made
    for connection in made.values():
        connection.close()


Reopen = Callable[[Patience | None], QdrantServerStore]


@pytest.fixture
def reopen(
    double: QdrantDouble, connections: dict[tuple[str, Patience | None], Connection]
) -> Reopen:
    """Make a store that knows nothing yet, with some patience; None: that of production."""

    def reopen(patience: Patience | None) -> QdrantServerStore:
        known = connections.get((double.url, patience))
        if known is None:
            route = Route(double.url, KEY, double.grpc_port)
            known = Connection(route, patience or READS, patience or WRITES)
            connections[double.url, patience] = known
        return QdrantServerStore(known)

    return reopen


@pytest.fixture
def store(reopen: Reopen) -> QdrantServerStore:
    """A store with little patience."""
    return reopen(SHORT)


@pytest.fixture
def cats(store: QdrantServerStore) -> Collection:
    """A project of three images."""
    cats = store.collection("tiny", DIMENSION, CATS)
    cats.upsert(points(CATS, ["a", "b", "c"]), vectors(3))
    return cats


@pytest.fixture
def brief(reopen: Reopen, cats: Collection) -> Collection:
    """The same project, for whom has no time."""
    return reopen(BRIEF).collection("tiny", DIMENSION, CATS)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done inside takes no longer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def one_line(error: BaseException) -> str:
    """The message, which is one line and holds no secret."""
    assert "\n" not in str(error)
    assert KEY not in str(error)
    return str(error)


UPSERTED = points(CATS, ["a", "b"], "d2")
CHANGES: dict[str, tuple[str, Callable[[Collection], None]]] = {
    "upsert": ("upsert", lambda cats: cats.upsert(UPSERTED, vectors(2))),
    "relabel": ("batch_update_points", lambda cats: cats.relabel(UPSERTED)),
    "delete": ("delete", lambda cats: cats.delete(UPSERTED["point_id"])),
    "drop": ("delete", lambda cats: cats.drop()),
}
QUESTIONS: dict[str, tuple[str, Callable[[Collection], object]]] = {
    "exists": ("scroll", lambda cats: cats.exists()),
    "count": ("count", lambda cats: cats.count()),
    "nearest": ("query_points", lambda cats: cats.nearest(vectors(1)[0], 2)),
    "scroll": ("scroll", lambda cats: list(cats.scroll())),
    "of_images": ("scroll", lambda cats: cats.of_images(["a"])),
    "scroll_vectors": ("scroll", lambda cats: list(cats.scroll_vectors())),
}
CALLS = CHANGES | QUESTIONS


class TestReachingTheServer:
    def test_nothing_is_sent_before_it_is_needed(self, double: QdrantDouble) -> None:
        """Making a store and its handles sends nothing; the first use goes by gRPC."""
        store = connect(double.url, KEY, double.grpc_port)
        cats = store.collection("tiny", DIMENSION, CATS)
        assert double.asked == []
        assert not cats.exists()
        assert double.doors == {"grpc"}
        store.close()

    @pytest.mark.parametrize("double", ["rest"], indirect=True)
    def test_rest_is_used_where_grpc_cannot_be_reached(
        self, double: QdrantDouble, store: QdrantServerStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Only REST's port is open: everything works, and a log line says so once, with gRPC's port."""
        cats = store.collection("tiny", DIMENSION, CATS)
        cats.upsert(points(CATS, ["a"]), vectors(1))
        assert (cats.count(), double.doors) == (1, {"rest"})
        (said,) = [record.getMessage() for record in caplog.records]
        assert f"gRPC on port {double.grpc_port} does not answer" in said
        assert "using REST" in said

    @pytest.mark.parametrize("double", ["rest"], indirect=True)
    def test_rest_is_used_where_grpc_is_swallowed(
        self, double: QdrantDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A port that takes connections and never says a word holds up the first call for seconds only."""
        monkeypatch.setattr(qdrant_connection, "_GREETING_SECONDS", GREETING_SECONDS)
        with create_server(("127.0.0.1", 0)) as silent, within(5):
            store = connect(double.url, None, silent.getsockname()[1])
            assert "0 collections" in store.check()
            store.close()

    def test_an_unreachable_server_is_one_line(self) -> None:
        """Whatever is asked: its address and the remedy, retryable."""
        url = f"http://127.0.0.1:{free_port()}"
        twice = replace(BRIEF, tries=2)
        store = connect(url, KEY, free_port(), reads=twice, writes=twice)
        cats = store.collection("tiny", DIMENSION, CATS)
        for ask in (store.check, *(partial(ask, cats) for _, ask in CALLS.values())):
            with pytest.raises(StoreUnavailable) as caught:
                ask()
            assert url in one_line(caught.value)
            assert "unset QDRANT_URL" in str(caught.value)
            assert caught.value.retryable

    @pytest.mark.parametrize(
        "url", ["qdrant.example:6333", "ftp://qdrant.example", "http://", "http://qdrant.example:x"]
    )
    def test_a_bad_address_is_refused(self, url: str) -> None:
        """At once, and nothing is guessed: not whether to encrypt either."""
        with pytest.raises(SettingsError, match=f"QDRANT_URL='{url}': must be like http://"):
            connect(url)

    def test_credentials_in_the_address_are_never_told(self) -> None:
        """A user and password in QDRANT_URL stay out of every message."""
        store = connect(f"http://ann:{KEY}@127.0.0.1:{free_port()}", None, free_port(), reads=BRIEF)
        with pytest.raises(StoreError) as caught:
            store.check()
        one_line(caught.value)

    def test_a_key_in_the_clear_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        """An API key over http to another machine is said, without the key; to this one it is not."""
        connect("http://localhost:6333", KEY)
        connect("https://qdrant.example:6333", KEY)
        assert caplog.text == ""
        connect("http://qdrant.example:6333", KEY)
        assert "Qdrant at http://qdrant.example:6333: the API key crosses" in caplog.text
        assert KEY not in caplog.text


class TestPermanentErrors:
    """Asked once, said at once, with the patience of production."""

    @pytest.fixture
    def store(self, reopen: Reopen) -> QdrantServerStore:
        """A store with all its patience."""
        return reopen(None)

    @BY_BOTH_DOORS
    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            ("UNAUTHENTICATED", "check QDRANT_API_KEY"),
            ("PERMISSION_DENIED", "check QDRANT_API_KEY"),
            ("NOT_FOUND", "check QDRANT_URL"),
            ("INVALID_ARGUMENT", "check the server's version and its log"),
        ],
    )
    def test_they_surface_at_once_with_the_remedy(
        self, double: QdrantDouble, cats: Collection, code: str, remedy: str
    ) -> None:
        """Whatever is asked, by either door: one request, one line, no key, not retryable."""
        for verb, ask in CALLS.values():
            double.fail(verb, refuse(code, f"not\nwith {KEY}"), times=None)
            before = len(double.asked)
            with within(1), pytest.raises(StoreError, match=remedy) as caught:
                ask(cats)
            assert CATS in one_line(caught.value)
            assert not caught.value.retryable
            assert double.asked[before:].count(verb) == 1

    @pytest.mark.parametrize("grpc", [True, False])
    def test_a_wrong_key(self, *, grpc: bool) -> None:
        """From the first call: check QDRANT_API_KEY."""
        with QdrantDouble(api_key="another", grpc=grpc) as double, within(5):
            store = connect(double.url, KEY, double.grpc_port)
            with pytest.raises(StoreError, match="check QDRANT_API_KEY") as caught:
                store.check()
            one_line(caught.value)
            store.close()

    def test_https_where_the_server_speaks_http(self, double: QdrantDouble) -> None:
        """The remedy names http and https, and nobody waits for it."""
        store = connect(double.url.replace("http", "https"), KEY, double.grpc_port)
        with within(5), pytest.raises(StoreError, match="begins with http or https") as caught:
            store.check()
        one_line(caught.value)
        assert not caught.value.retryable

    def test_something_else_answers(self) -> None:
        """A web page where Qdrant should be is recognised."""

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>hello</html>")

            def log_message(self, *_: object) -> None:
                """Silent."""

        with HTTPServer(("127.0.0.1", 0), Page) as server:
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            store = connect(f"http://127.0.0.1:{server.server_port}", KEY, free_port())
            with within(5), pytest.raises(StoreError, match="is not Qdrant's") as caught:
                store.check()
            server.shutdown()
        assert "check QDRANT_URL" in one_line(caught.value)

    @BY_BOTH_DOORS
    def test_one_refused_batch_stops_the_others(
        self, double: QdrantDouble, store: QdrantServerStore, cats: Collection
    ) -> None:
        """A write of twenty batches of which one is refused is an error, and what was not begun is not."""
        names = [f"{i}" for i in range(20 * 256)]
        double.fail("upsert", double.late(0.1), times=4)
        double.fail("upsert", refuse("INVALID_ARGUMENT"))
        double.fail("upsert", double.late(20), times=None)
        before = len(double.asked)
        with within(5), pytest.raises(StoreError, match=r"INVALID_ARGUMENT|400"):
            cats.upsert(points(CATS, names), vectors(len(names)))
        assert double.asked[before:].count("upsert") <= 8
        double.heal()
        cats.upsert(points(CATS, names[:600]), vectors(600))


TRANSIENT: dict[str, Fault] = {
    "unavailable": refuse("UNAVAILABLE"),
    "server error": refuse("INTERNAL"),
    "timeout said": refuse("DEADLINE_EXCEEDED"),
    "too much": refuse("RESOURCE_EXHAUSTED"),
    "cut before": cut(done=False),
    "cut after": cut(done=True),
    "acknowledged": not_done(),
    "wait timeout": not_done(models.UpdateStatus.WAIT_TIMEOUT),
}


class TestTransientErrors:
    @BY_BOTH_DOORS
    @pytest.mark.parametrize("fault", TRANSIENT)
    def test_writes_ride_them_out(
        self, double: QdrantDouble, store: QdrantServerStore, fault: str
    ) -> None:
        """Twice each, at every write: all is done in the end, and done right."""
        for verb in ("create_payload_index", "upsert", "batch_update_points", "delete"):
            double.fail(verb, TRANSIENT[fault], times=2)
        cats = store.collection("tiny", DIMENSION, CATS)
        names = [f"{i}" for i in range(600)]
        cats.upsert(points(CATS, names), vectors(600))
        cats.relabel(points(CATS, names[:5], "d2"))
        cats.delete(points(CATS, names[10:])["point_id"])
        assert double.indexes[NAME].keys() == {"project_id", "dataset_id"}
        assert rows(cats).group_by("dataset_id").len().sort("dataset_id").rows() == [
            ("d1", 5),
            ("d2", 5),
        ]

    @BY_BOTH_DOORS
    @pytest.mark.parametrize(
        "fault", [f for f in TRANSIENT if f not in ("acknowledged", "wait timeout")]
    )
    def test_reads_ride_them_out(self, double: QdrantDouble, cats: Collection, fault: str) -> None:
        """A search, a count, a page asked for again gives what it would have given."""
        for verb, ask in QUESTIONS.values():
            expected = str(ask(cats))
            double.fail(verb, TRANSIENT[fault], times=2)
            assert str(ask(cats)) == expected
            assert double.asked[-3:] == [verb] * 3

    @BY_BOTH_DOORS
    def test_an_answer_that_comes_too_late_is_asked_for_again(
        self, double: QdrantDouble, cats: Collection
    ) -> None:
        """A request that takes longer than a try may is given up, and the next try succeeds."""
        double.fail("query_points", double.late(2))
        with within(2.5):
            assert cats.nearest(vectors(1)[0], 1)["image_id"].to_list() == ["a"]
        assert double.asked[-2:] == ["query_points"] * 2

    def test_a_retry_is_logged(
        self, double: QdrantDouble, cats: Collection, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One line: what is asked again, of whom, why, when, and how often it may be."""
        double.fail("upsert", refuse("UNAVAILABLE", f"no {KEY}"))
        cats.upsert(UPSERTED, vectors(2))
        (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert f"Qdrant at {double.url}: upsert {CATS} in {NAME}: UNAVAILABLE: no ***" in said
        assert "trying again in" in said
        assert "(1 of at most 20 tries)" in said

    @BY_BOTH_DOORS
    def test_the_server_says_when_to_come_back(
        self, double: QdrantDouble, cats: Collection
    ) -> None:
        """Its retry-after is waited for; one that ends after the deadline is not begun."""
        started = time.monotonic()
        double.fail("count", refuse("RESOURCE_EXHAUSTED", retry_after=1))
        assert cats.count() == 3
        assert time.monotonic() - started >= 1
        double.fail("count", refuse("RESOURCE_EXHAUSTED", "too many", retry_after=60))
        with within(1), pytest.raises(StoreUnavailable, match=r"too many.*try again later"):
            cats.count()

    @BY_BOTH_DOORS
    @pytest.mark.parametrize("kind", ["unavailable", "cut before", "never answers"])
    def test_the_deadline_ends_all_tries(
        self, double: QdrantDouble, cats: Collection, reopen: Reopen, kind: str
    ) -> None:
        """A fault that never passes is a retryable error of one line, no later than the deadline.

        Of a write and of a search, which wait at the same time.
        """
        fault = double.late(30) if kind == "never answers" else TRANSIENT[kind]
        cats = reopen(BUSY).collection("tiny", DIMENSION, CATS)
        cats.count()
        calls = [CALLS[name] for name in ("upsert", "nearest")]
        for verb, _ in calls:
            double.fail(verb, fault, times=None)
        with ThreadPoolExecutor(len(calls)) as pool, within(BUSY.total_seconds + 0.5):
            asked = [pool.submit(ask, cats) for _, ask in calls]
            errors = [each.exception() for each in asked]
        for error in errors:
            assert isinstance(error, StoreUnavailable)
            assert CATS in one_line(error)
            assert error.retryable

    def test_the_number_of_tries_is_bounded(self, double: QdrantDouble) -> None:
        """However short the waits are."""
        three = Patience(3, 1, 60, first_wait_seconds=0.001)
        store = connect(double.url, None, double.grpc_port, reads=three)
        double.fail("get_collections", refuse("UNAVAILABLE"), times=None)
        with pytest.raises(StoreUnavailable):
            store.check()
        assert double.asked.count("get_collections") == 3
        store.close()

    @BY_BOTH_DOORS
    @pytest.mark.parametrize("status", ["acknowledged", "wait timeout"])
    def test_what_is_not_completed_is_never_reported_as_done(
        self, double: QdrantDouble, brief: Collection, status: str
    ) -> None:
        """A server that only acknowledges a write is asked again, and in the end it is an error."""
        for verb, write in CHANGES.values():
            double.fail(verb, TRANSIENT[status], times=None)
            with pytest.raises(StoreUnavailable, match="did not say that it is done"):
                write(brief)
            assert double.asked[-3:] == [verb] * 3
        assert_frame_equal(points(CATS, ["a", "b", "c"]).sort("point_id"), rows(brief))

    def test_no_point_is_written_before_its_index_is_completed(
        self, double: QdrantDouble, reopen: Reopen
    ) -> None:
        """An index that is only acknowledged holds up the points."""
        double.fail("create_payload_index", not_done(), times=None)
        store = reopen(BRIEF)
        with pytest.raises(StoreUnavailable):
            store.collection("tiny", DIMENSION, CATS).upsert(UPSERTED, vectors(2))
        assert "upsert" not in double.asked

    @BY_BOTH_DOORS
    def test_one_lost_batch_of_many_is_never_reported_as_done(
        self, double: QdrantDouble, brief: Collection
    ) -> None:
        """Of seven batches one is only acknowledged, for ever: the write is an error."""
        lost = points(CATS, ["1000"])["point_id"][0]
        names = [f"{i}" for i in range(7 * 256)]
        double.fail("upsert", not_done(), times=None)
        double.fail("upsert", lambda work: work(), times=6)
        with pytest.raises(StoreUnavailable):
            brief.upsert(points(CATS, names), vectors(len(names)))
        assert brief.count() < len(names) + 3
        double.heal()
        brief.upsert(points(CATS, names), vectors(len(names)))
        assert brief.count() == len(names) + 3
        assert lost in rows(brief)["point_id"]

    @BY_BOTH_DOORS
    def test_a_restart_of_the_server_is_ridden_out(
        self, double: QdrantDouble, cats: Collection, reopen: Reopen
    ) -> None:
        """A server that is away for a second in the middle of a write costs that second."""
        cats = reopen(STEADY).collection("tiny", DIMENSION, CATS)
        assert cats.count() == 3
        double.stop()
        back = Timer(1, double.start)
        back.start()
        names = [f"{i}" for i in range(600)]
        cats.upsert(points(CATS, names), vectors(600))
        back.join()
        assert cats.count() == 603

    def test_three_batches_are_in_flight(self, double: QdrantDouble, cats: Collection) -> None:
        """No more than three at once, and not one after the other."""
        flying: list[int] = [0]
        most: list[int] = []

        def watched(work: Work) -> Any:
            flying[0] += 1
            most.append(flying[0])
            time.sleep(0.05)
            flying[0] -= 1
            return work()

        double.fail("upsert", watched, times=None)
        names = [f"{i}" for i in range(9 * 256)]
        cats.upsert(points(CATS, names), vectors(len(names)))
        assert max(most) == 3


class TestInterrupts:
    """With all the patience of production: only an interrupt can end these waits in time."""

    @pytest.fixture
    def store(self, reopen: Reopen) -> QdrantServerStore:
        """A store with all its patience."""
        return reopen(None)

    @BY_BOTH_DOORS
    @pytest.mark.parametrize("images", [1, 1000])
    @pytest.mark.parametrize("kind", ["hangs", "fails"])
    def test_ctrl_c_ends_a_write(
        self, double: QdrantDouble, cats: Collection, kind: str, images: int
    ) -> None:
        """In flight or between tries, one batch or many: over within seconds, and usable afterwards."""
        fault = double.late(60) if kind == "hangs" else refuse("UNAVAILABLE")
        double.fail("upsert", fault, times=None)
        written = points(CATS, [f"{i}" for i in range(images)])
        Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        with within(3), pytest.raises(KeyboardInterrupt):
            cats.upsert(written, vectors(images))
        asked = len(double.asked)
        time.sleep(0.3)
        assert len(double.asked) <= asked + 3
        double.heal()
        cats.upsert(written, vectors(images))
        assert cats.count() == 3 + images

    def test_a_write_that_was_stopped_leaves_nothing_under_way(
        self, double: QdrantDouble, cats: Collection
    ) -> None:
        """By gRPC the requests in flight are let go at once, so that none lands in a later run."""
        double.fail("upsert", double.late(60), times=None)
        # Those of the tests before, by REST, still wait for the server.
        others = set(enumerate_threads())
        Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            cats.upsert(points(CATS, [f"{i}" for i in range(1000)]), vectors(1000))
        with within(3):
            while any(t.name == "side-by-side" for t in set(enumerate_threads()) - others):
                time.sleep(0.02)

    @BY_BOTH_DOORS
    def test_ctrl_c_ends_a_search(self, double: QdrantDouble, cats: Collection) -> None:
        """A person who gives up a search does not wait for its deadline."""
        double.fail("query_points", double.late(60), times=None)
        Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        with within(2), pytest.raises(KeyboardInterrupt):
            cats.nearest(vectors(1)[0], 1)

    @BY_BOTH_DOORS
    def test_a_process_ends_within_seconds(self, double: QdrantDouble, cats: Collection) -> None:
        """Threads that still wait for a server that hangs hold up no exit."""
        double.fail("upsert", double.late(60), times=None)
        script = f"""
from embed_pipeline.stores.qdrant_server import connect
from embed_pipeline_tests.store_samples import points, vectors
cats = connect({double.url!r}, None, {double.grpc_port}).collection("tiny", {DIMENSION}, {CATS!r})
cats.upsert(points({CATS!r}, [str(i) for i in range(1000)]), vectors(1000))
"""
        running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
        while double.asked.count("upsert") < 4:
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGINT)
        with within(4):
            _, said = running.communicate(timeout=20)
        assert running.returncode == -signal.SIGINT
        assert said.decode().rstrip().endswith("KeyboardInterrupt")

    @BY_BOTH_DOORS
    def test_close_ends_what_other_threads_wait_for(
        self, double: QdrantDouble, store: QdrantServerStore, cats: Collection
    ) -> None:
        """Whoever waits between tries is told that it was stopped; the store opens again when used."""
        double.fail("upsert", refuse("UNAVAILABLE"), times=None)
        writing = points(CATS, [f"{i}" for i in range(1000)])
        asked = double.asked.count("upsert")
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(cats.upsert, writing, vectors(1000))
            while double.asked.count("upsert") == asked:
                time.sleep(0.01)
            store.close()
            with pytest.raises(StoreUnavailable, match="was not waited for"):
                written.result(timeout=3)
        double.heal()
        assert cats.count() >= 3

    def test_what_begins_after_a_stop_says_so_itself(self) -> None:
        """A thread that starts late hides no error behind one of its own."""
        stop = Event()
        stop.set()

        def refused() -> NoReturn:
            raise StoreUnavailable("was not waited for")

        with pytest.raises(StoreUnavailable):
            run_all([refused] * 4, 3, stop)


class TestSchema:
    def test_what_is_made(self, double: QdrantDouble, cats: Collection) -> None:
        """Float16 and cosine, a graph over each project, int8 to search in, and both indexes first."""
        made = double.created[NAME]
        assert made.vectors.model_dump(exclude_none=True) == {
            "size": DIMENSION,
            "distance": models.Distance.COSINE,
            "datatype": models.Datatype.FLOAT16,
            "on_disk": True,
        }
        assert (made.hnsw_config.m, made.hnsw_config.payload_m) == (0, 16)
        assert made.quantization_config.scalar.type == models.ScalarType.INT8
        assert made.metadata == {"embed_pipeline_schema": 1}
        indexes = double.indexes[NAME]
        assert {field: bool(index.is_tenant) for field, index in indexes.items()} == {
            "project_id": True,
            "dataset_id": False,
        }
        assert double.asked[-3:] == ["create_payload_index", "create_payload_index", "upsert"]

    def test_no_quantization(self, double: QdrantDouble) -> None:
        """QDRANT_QUANTIZATION=none: float16 alone, in RAM."""
        store = connect(double.url, None, double.grpc_port, "none")
        store.collection("tiny", DIMENSION, CATS).upsert(UPSERTED, vectors(2))
        assert double.created[NAME].quantization_config is None
        assert not double.created[NAME].vectors.on_disk
        store.close()

    @BY_BOTH_DOORS
    def test_search_asks_for_recall(self, double: QdrantDouble, cats: Collection) -> None:
        """Every search rescores twice as many as it returns, with a wide beam."""
        cats.nearest(vectors(1)[0], 1)
        params = double.searched[-1]
        assert (params.hnsw_ef, params.quantization.rescore) == (256, True)
        assert params.quantization.oversampling == 2

    def test_the_collection_is_looked_at_once(self, double: QdrantDouble, cats: Collection) -> None:
        """After the first, a write or a search is one request."""
        before = len(double.asked)
        cats.upsert(UPSERTED, vectors(2))
        cats.nearest(vectors(1)[0], 1)
        cats.count()
        cats.relabel(UPSERTED)
        cats.delete(UPSERTED["point_id"])
        asked = ["upsert", "query_points", "count", "batch_update_points", "delete"]
        assert double.asked[before:] == asked

    @BY_BOTH_DOORS
    def test_a_collection_that_was_deleted_is_made_again(
        self, double: QdrantDouble, cats: Collection
    ) -> None:
        """Gone behind our back: reads say so, and the next upsert makes it anew, with its indexes."""
        double.answer("test", "delete_collection", KEY, name=NAME)
        assert not cats.exists()
        for read in ("count", "nearest", "scroll"):
            with pytest.raises(CollectionMissing, match="sync the project first"):
                QUESTIONS[read][1](cats)
        cats.relabel(UPSERTED)
        cats.delete(UPSERTED["point_id"])
        cats.upsert(points(CATS, [f"{i}" for i in range(600)]), vectors(600))
        assert cats.count() == 600
        assert double.indexes[NAME].keys() == {"project_id", "dataset_id"}

    @BY_BOTH_DOORS
    @pytest.mark.parametrize("version", [2, "3.1-beta"])
    def test_an_unknown_version_is_refused(
        self, double: QdrantDouble, cats: Collection, reopen: Reopen, version: object
    ) -> None:
        """Made by a later embed-pipeline: nobody reads or writes it, and the remedy is said."""
        double.engine.update_collection(NAME, metadata={"embed_pipeline_schema": version})
        later = reopen(BRIEF).collection("tiny", DIMENSION, CATS)
        for _, call in (CALLS[name] for name in CALLS if name != "exists"):
            with pytest.raises(
                StoreError, match=f"version {version}.*update embed-pipeline"
            ) as caught:
                call(later)
            one_line(caught.value)
        assert cats.count() == 3

    def test_another_distance_is_refused(
        self, double: QdrantDouble, store: QdrantServerStore
    ) -> None:
        """A collection of that name which compares otherwise is left alone."""
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.DOT)
        double.engine.create_collection(NAME, vectors_config=params)
        with pytest.raises(StoreError, match="compared by cosine; rename or delete"):
            store.collection("tiny", DIMENSION, CATS).upsert(UPSERTED, vectors(2))
        assert double.engine.count(NAME).count == 0

    @BY_BOTH_DOORS
    def test_a_collection_of_an_earlier_version_is_taken_over(
        self, double: QdrantDouble, store: QdrantServerStore
    ) -> None:
        """Without version or indexes, but fitting: it is read as it is, and completed by a write."""
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        double.engine.create_collection(NAME, vectors_config=params)
        cats = store.collection("tiny", DIMENSION, CATS)
        with pytest.raises(CollectionMissing):
            cats.count()
        assert double.engine.get_collection(NAME).config.metadata is None
        cats.upsert(UPSERTED, vectors(2))
        found = double.engine.get_collection(NAME).config.metadata
        assert found == {"embed_pipeline_schema": 1}
        assert double.indexes[NAME].keys() == {"project_id", "dataset_id"}

    @BY_BOTH_DOORS
    def test_another_process_makes_it_first(
        self, double: QdrantDouble, store: QdrantServerStore
    ) -> None:
        """Made between our look and our making, and not quite ready: no error, nothing lost."""

        def beaten(work: Work) -> NoReturn:
            work()
            raise Refused("ALREADY_EXISTS", f"Wrong input: Collection `{NAME}` already exists!")

        double.fail("get_collection", lambda work: work())
        double.fail("get_collection", refuse("INTERNAL", "0 of 0 read operations failed"))
        double.fail("create_collection", beaten)
        cats = store.collection("tiny", DIMENSION, CATS)
        cats.upsert(UPSERTED, vectors(2))
        assert cats.count() == 2
        assert double.indexes[NAME].keys() == {"project_id", "dataset_id"}

    def test_many_make_it_at_once(self, double: QdrantDouble) -> None:
        """Eight processes that start on an empty server at the same moment all succeed."""
        stores = [connect(double.url, None, double.grpc_port) for _ in range(8)]
        failed: list[EmbedPipelineError] = []

        def write(number: int) -> None:
            project = f"source/{number}"
            try:
                collection = stores[number].collection("tiny", DIMENSION, project)
                collection.upsert(points(project, ["a", "b"]), vectors(2))
            except EmbedPipelineError as error:
                failed.append(error)

        threads = [Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert double.engine.count(NAME).count == 16
        for store in stores:
            store.close()

    def test_spaces_ignores_collections_of_others(
        self, double: QdrantDouble, store: QdrantServerStore, cats: Collection
    ) -> None:
        """Collections that are not ours, or hold nothing of the project, are no spaces; nothing is made."""
        params = models.VectorParams(size=3, distance=models.Distance.DOT)
        for name in ("images_else", "other"):
            double.engine.create_collection(name, vectors_config=params)
        before = len(double.asked)
        assert store.spaces(CATS) == ["tiny"]
        assert double.asked[before:] == ["get_collections", "scroll", "scroll"]


@pytest.mark.parametrize("double", ["grpc", "rest"], indirect=True)
def test_an_empty_server_is_filled_from_the_library(
    double: QdrantDouble,
    root: Path,
    start: Callable[..., ProjectRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Synced into the embedded store first, then QDRANT_URL is set: embed 0, and the audit is clean."""
    draw_many(root / "cats", 60)
    assert sync(start()).embed == 60

    monkeypatch.setenv("QDRANT_URL", double.url)
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(double.grpc_port))
    monkeypatch.setattr(embedding, "_encode", None)  # whoever calls the model now fails
    run = start()
    state = sync(run)
    assert (state.embed, state.reuse, state.failed) == (0, 60, 0)
    assert verify(start(), vectors=True).equal
    assert run.deployment.store.spaces("test/cats") == [run.card.space]
    state = sync(start())
    assert (state.unchanged, state.reuse) == (60, 0)
    run.deployment.store.close()
