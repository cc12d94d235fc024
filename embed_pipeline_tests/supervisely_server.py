"""A stand-in for a Supervisely instance, on a local port, with faults on demand.

    python -m embed_pipeline_tests.supervisely_server --port 8700 --sample 3

It prints what it made, then `ready`. In another terminal:

    EMBED_SOURCE=supervisely SERVER_ADDRESS=http://127.0.0.1:8700 API_TOKEN=token embed-pipeline projects

`POST /admin` with `{"call": "add_image", "args": {"dataset_id": 4, "name": "a.jpg", "data_base64": "…"}}`
changes the instance as its users would, `{"fail": "preview", "fault": "slow", "args": [1], "times": null}`
injects a fault, `{"heal": true}` ends all of them. `GET /admin/state` tells what it holds and was asked.
With `--state FILE` it comes back as it was, however it ended.

The wire is real: the `supervisely` package's own requests over real sockets. What the contract does not
have is answered with an error and noted in `unknown`, which a test expects to be empty.
"""

import argparse
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from embed_pipeline_tests import supervisely_faults
from embed_pipeline_tests.supervisely_door import Door
from embed_pipeline_tests.supervisely_faults import Fault
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_lists import Body, Refused, Reply, not_found
from embed_pipeline_tests.supervisely_methods import Methods
from embed_pipeline_tests.supervisely_pictures import make_sample, shrunk


class Trouble(NamedTuple):
    """A fault that waits for its request. left: how often it shows; None: for ever."""

    fault: Fault
    when: Callable[[Body], bool]
    left: list[int | None]


class StandIn:
    """The server.

    requests: how many came, by the method's name, or `preview` or `original`. in_flight_most: how many
    of each were under way at once, at most. unknown: what was asked that the contract does not have.
    """

    def __init__(
        self, instance: Instance | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.instance = instance or Instance()
        self.requests: Counter[str] = Counter()
        self.in_flight_most: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.hurry = threading.Event()
        self.stopped = True
        self.port = port
        self._host = host
        self._methods = Methods(self.instance)
        self._in_flight: Counter[str] = Counter()
        self._troubles: dict[str, list[Trouble]] = {}
        self._lock = threading.Lock()
        self.start()

    @property
    def url(self) -> str:
        """For SERVER_ADDRESS."""
        return f"http://{self._host}:{self.port}"

    def start(self) -> None:
        """Open the port, the same as before."""
        self.hurry = threading.Event()
        self.stopped = False
        self._door = Door(self, (self._host, self.port))
        self.port = self._door.server_port
        threading.Thread(target=self._door.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection; what the instance holds stays."""
        if not self.stopped:
            self.stopped = True
            self.hurry.set()
            self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fail(
        self,
        kind: str,
        fault: Fault,
        times: int | None = 1,
        when: Callable[[Body], bool] = lambda _: True,
    ) -> None:
        """Show the fault when next asked so, `times` times; None: for ever.

        kind: a method's name, `preview` or `original`. when: given the body, or `{"path": …}`.
        """
        with self._lock:
            self._troubles.setdefault(kind, []).append(Trouble(fault, when, [times]))

    def heal(self) -> None:
        """Show no fault any more, and give the answers that are late."""
        with self._lock:
            self._troubles.clear()
        self.hurry.set()
        self.hurry = threading.Event()

    def reset_counts(self) -> None:
        """Forget what was asked so far, but not what was unknown."""
        with self._lock:
            self.requests.clear()
            self.in_flight_most.clear()

    def fault_for(self, kind: str, asked: Body) -> Fault:
        """What to do with a request: answer it, where no fault waits for it."""
        with self._lock:
            waiting = self._troubles.get(kind, [])
            for trouble in [t for t in waiting if t.left[0] != 0 and t.when(asked)]:
                if trouble.left[0] is not None:
                    trouble.left[0] -= 1
                return trouble.fault
        return supervisely_faults.answered

    @contextmanager
    def counted(self, kind: str) -> Iterator[None]:
        """Count a request while it is under way."""
        with self._lock:
            self.requests[kind] += 1
            self._in_flight[kind] += 1
            self.in_flight_most[kind] = max(self.in_flight_most[kind], self._in_flight[kind])
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[kind] -= 1

    def call(self, name: str, body: Body, token: str | None, address: str) -> Reply:
        """Answer a method of the API."""
        try:
            return self._methods.answer(name, body, token, address)
        except Refused as refusal:
            if refusal.unknown:
                self.unknown.append(f"{name}: {refusal}")
            return refusal.reply

    def preview(self, place: str, width: int, height: int, quality: int) -> Reply:
        """What is at a path or link, made smaller."""
        if self.instance.canned_preview is not None:
            return Reply(200, self.instance.canned_preview, {"Content-Type": "image/jpeg"})
        data = self._original(place)
        small = shrunk(data, width, height, quality) if data is not None else None
        return not_found() if small is None else Reply(200, small, {"Content-Type": "image/jpeg"})

    def original(self, place: str) -> Reply:
        """What is at a path."""
        data = self._original(place)
        return not_found() if data is None else Reply(200, data)

    def _original(self, place: str) -> bytes | None:
        found = self.instance.original(place)
        return found if found is not None else self.instance.original(unquote(place))

    def administer(self, asked: Body) -> Reply:
        """Change the instance, or what it answers, as `POST /admin` asks."""
        try:
            said = self._told_to(asked)
            return Reply.of(_told(said) if is_dataclass(said) else said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Reply.of({"error": repr(error)}, 400)

    def _told_to(self, asked: Body) -> Any:
        if asked.get("heal"):
            return self.heal()
        if "fail" in asked:
            fault = getattr(supervisely_faults, asked["fault"])(*asked.get("args", ()))
            return self.fail(asked["fail"], fault, asked.get("times", 1))
        name, args = asked["call"], dict(asked.get("args", {}))
        if name.startswith("_"):
            raise ValueError(f"no call {name}")
        for key in [key for key in args if key.endswith("_base64")]:
            args[key.removesuffix("_base64")] = b64decode(args.pop(key))
        return getattr(self.instance, name)(**args)

    def state(self) -> Body:
        """What the instance holds, but for bytes, and what it was asked."""
        with self.instance.lock, self._lock:
            return {
                "projects": [_told(project) for project in self.instance.projects.values()],
                "images": [_told(image) for image in self.instance.images.values()],
                "requests": dict(self.requests),
                "in_flight_most": dict(self.in_flight_most),
                "unknown": list(self.unknown),
            }


def _told(thing: Any) -> Body:
    return {name: v for name, v in vars(thing).items() if name not in ("data", "images")}


def main() -> None:
    """The command line: serves until it is ended."""
    parser = argparse.ArgumentParser(description="A stand-in for a Supervisely instance.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--state", type=Path, help="file that it keeps itself in")
    parser.add_argument("--sample", type=int, default=0, help="projects to begin with, if new")
    asked = parser.parse_args()
    known = asked.state is not None and asked.state.exists()
    instance = Instance.load(asked.state) if known else Instance(state_file=asked.state)
    if not known:
        make_sample(instance, asked.sample)
    with StandIn(instance, asked.port, asked.host) as stand_in:
        print("address", stand_in.url)
        print("token", instance.tokens[0])
        for project in instance.projects.values():
            print("project", project.id, project.name, len(project.images), "images")
        print("ready", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
