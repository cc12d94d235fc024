"""A Supervisely instance as a source: what a look asks of it, and how well its link is used.

    python -m benchmarks.supervisely [--images 20000]

Prints one JSON line. The instance is a stand-in in a process of its own. `look`: one look of the sensor
at 500 projects of which 3 changed. `near`, `near_some_slow`: a first sync where each preview and page
of a list comes after 50 ms; and where one preview in 1,000 takes 8 s. `far_some_slow`: fewer images,
all from farther away, so that the link is what bounds it, not the cores.

Ceilings: `link`, a bare client that downloads from the same instance with as many connections (where
some are slow, less what those hold); `no_latency`, the same sync from an instance that answers at
once, which the cores alone bound: the stand-in's work, downloading, decoding and encoding share them.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx
import numpy as np
from PIL import Image

from benchmarks.machine import machine, versions
from embed_pipeline import embedding
from embed_pipeline.changes import Noticed, write_noticed
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.deployment import Deployment
from embed_pipeline.embedding import Content, Prepared, Throughput, Work
from embed_pipeline.models.protocol import Pixels
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.runs import dagster_instance
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import apply, diff, embed, scan
from embed_pipeline.watching import look_around
from embed_pipeline_tests.supervisely_faults import slow
from embed_pipeline_tests.supervisely_lists import Reply
from embed_pipeline_tests.supervisely_server import StandIn

Step = Callable[[ProjectRun], Any]

TEAMS = 5
PROJECTS = 500
PROJECT_IMAGES = 20
CHANGED = 3

NEAR_SECONDS = 0.05
FAR_SECONDS = 0.2
SLOW_SECONDS = 8.0
SLOW_EVERY = 1_000
FEW_IMAGES = 3_000
ORIGINAL = (1600, 1200)
PREVIEW = (86, 64)
PREVIEWS = 64  # that differ; they are given in turn
MOST = 0.75  # of EMBED_DOWNLOADS


def main() -> None:
    """Look, sync, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    images: int = parser.parse_args().images
    with tempfile.TemporaryDirectory() as top, standing_in() as site:
        figures = measure(Bench(site, Path(top)), images)
    print(json.dumps({"images": images, **figures, **machine(), "versions": versions()}))


def measure(bench: "Bench", images: int) -> dict[str, Any]:
    """All figures."""
    few = min(images, FEW_IMAGES)
    look = bench.look()
    no_latency = bench.sync(few, 0.0)
    near = {"link": bench.link(few, NEAR_SECONDS).rate, "no_latency": no_latency.rate}
    far = near | {"link": bench.link(few // 3, FAR_SECONDS).rate}
    all_fast = bench.sync(images, NEAR_SECONDS)
    some_slow = bench.sync(images, NEAR_SECONDS, some_slow=True)
    from_afar = bench.sync(few, FAR_SECONDS, some_slow=True)
    return {
        "look": look,
        "no_latency": no_latency.told(),
        "near": all_fast.told() | against(all_fast, near),
        "near_some_slow": some_slow.told() | against(some_slow, less_held(near, NEAR_SECONDS)),
        "far_some_slow": from_afar.told() | against(from_afar, less_held(far, FAR_SECONDS)),
        "some_slow_to_none": {
            "images_per_second": round(some_slow.rate / all_fast.rate, 3),
            "encoder_waited_s": round(some_slow.waited / all_fast.waited, 3),
            "longest_wait_s": round(some_slow.longest_wait / all_fast.longest_wait, 3),
        },
    }


def less_held(ceilings: dict[str, float], latency: float) -> dict[str, float]:
    """The link's less the connections that slow previews hold."""
    mean = latency + (SLOW_SECONDS - latency) / SLOW_EVERY
    return ceilings | {"link": ceilings["link"] * latency / mean}


def against(run: "Synced", ceilings: dict[str, float]) -> dict[str, Any]:
    """Ceilings in images per second, and the rate as a part of the lowest."""
    lowest = min(ceilings, key=ceilings.__getitem__)
    return {
        "ceilings": {name: round(rate, 1) for name, rate in ceilings.items()},
        f"of_{lowest}": round(run.rate / ceilings[lowest], 3),
    }


class Told(NamedTuple):
    """What the stand-in saw since it was asked last. moves: +1 where a preview was begun, -1 where done."""

    requests: dict[str, int]
    moves: list[tuple[float, int]]
    cpu_seconds: float
    unknown: list[str]


class Site(StandIn):
    """The stand-in, in a process of its own."""

    def __init__(self) -> None:
        self.moves: list[tuple[float, int]] = []
        self._previews = cycle([jpeg(seed) for seed in range(PREVIEWS)])
        self._cpu_seconds = time.process_time()
        super().__init__()

    @contextmanager
    def counted(self, kind: str) -> Iterator[None]:
        """Also note when a preview is begun and done."""
        with super().counted(kind):
            if kind != "preview":
                yield
                return
            self.moves.append((time.monotonic(), 1))
            try:
                yield
            finally:
                self.moves.append((time.monotonic(), -1))

    def preview(self, *_: object) -> Reply:
        """One that is made already."""
        return Reply(200, next(self._previews), {"Content-Type": "image/jpeg"})

    def address(self) -> str:
        """For SERVER_ADDRESS."""
        return self.url

    def fill(self, images: int, projects: int = 1, teams: int = 1) -> list[int]:
        """Projects of images that differ from each other: their numbers."""
        instance, original = self.instance, png()
        members = [instance.add_team("team") for _ in range(teams)]
        made = [instance.add_project("project", members[n % teams]) for n in range(projects)]
        for project in made:
            dataset = instance.add_dataset(project, "dataset")
            names = (f"{number:06}.png" for number in range(images))
            pictures = {name: original + f"{project} {name}".encode() for name in names}
            instance.add_images(dataset, pictures)
        return made

    def change(self, projects: list[int]) -> None:
        """One more image in each."""
        for dataset in [*self.instance.datasets.values()]:
            if dataset.project_id in projects:
                self.instance.add_image(dataset.id, "new.png", png() + b"new")

    def paths(self, project: int) -> list[str]:
        """Of the originals."""
        return [str(image.path) for image in self.instance.project(project).images.values()]

    def delay(self, seconds: float, slow_paths: list[str]) -> None:
        """Answer so late from now on, and give previews of some paths after SLOW_SECONDS."""
        self.heal()
        late = tuple(slow_paths)
        if late:
            self.fail("preview", slow(SLOW_SECONDS), None, lambda a: a["path"].endswith(late))
        for kind in ("preview", "images.list") if seconds else ():
            self.fail(kind, slow(seconds), None)

    def told(self) -> Told:
        """What was seen since the last time."""
        cpu = time.process_time()
        told = Told(dict(self.requests), self.moves, cpu - self._cpu_seconds, self.unknown)
        self.reset_counts()
        self.moves, self._cpu_seconds = [], cpu
        return told


def serve(pipe: Connection) -> None:
    """The process of the stand-in: does what it is told until nobody is there."""
    with Site() as site, suppress(EOFError):
        while True:
            name, *args = pipe.recv()
            pipe.send(getattr(site, name)(*args))


class Remote:
    """Calls the stand-in in its process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def do(self, name: str, *args: object) -> Any:
        """What the method of Site returns."""
        self._pipe.send((name, *args))
        return self._pipe.recv()


@contextmanager
def standing_in() -> Iterator[Remote]:
    """The stand-in; spawned, so that it shares nothing with this process."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield Remote(here)
    finally:
        here.close()
        process.join()


@dataclass(frozen=True)
class Link:
    """Downloads as the stand-in saw them."""

    moves: list[tuple[float, int]]

    @property
    def last_begun(self) -> float:
        """When nothing was left to be begun."""
        return max(at for at, change in self.moves if change > 0)

    @property
    def rate(self) -> float:
        """Downloads begun in a second, while some were left."""
        begun = sum(change > 0 for _, change in self.moves)
        return begun / (self.last_begun - min(self.moves)[0])

    def told(self, downloads: int) -> dict[str, float]:
        """How busy it was while downloads were left, as shares of the time."""
        times, changes = np.array(sorted(self.moves)).T
        left = times[:-1] < self.last_begun
        seconds, under_way = np.diff(times)[left], np.cumsum(changes)[:-1][left]
        whole = seconds.sum()
        return {
            "mean": round(float((seconds * under_way).sum() / whole), 1),
            "share_all": round(float(seconds[under_way >= downloads].sum() / whole), 3),
            "share_most": round(float(seconds[under_way >= MOST * downloads].sum() / whole), 3),
        }


@dataclass
class Watch:
    """When the encoder asked for its next batch and got it, and the seconds that commits held it up."""

    waits: list[tuple[float, float, int]] = field(default_factory=list)
    commit_seconds: list[float] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is embedded meanwhile."""
        batches_of, add = embedding._batches, embedding.Committer.add  # noqa: SLF001

        def batches(
            prepared: Iterator[Prepared], work: Work
        ) -> Iterator[list[tuple[Content, Pixels]]]:
            coming = batches_of(prepared, work)
            while True:
                asked = time.monotonic()
                batch = next(coming, None)
                self.waits.append((asked, time.monotonic(), len(batch or ())))
                if batch is None:
                    return
                yield batch

        def timed_add(committer: embedding.Committer, embedded: embedding.Embedded) -> None:
            started = time.monotonic()
            add(committer, embedded)
            self.commit_seconds.append(time.monotonic() - started)

        with (
            patch.object(embedding, "_batches", batches),
            patch.object(embedding.Committer, "add", timed_add),
        ):
            yield


@dataclass(frozen=True)
class Synced:
    """A first sync. seconds: of its steps."""

    downloads: int
    seconds: dict[str, float]
    throughput: Throughput
    state: CollectionState
    watch: Watch
    seen: Told
    cpu_seconds: float

    @property
    def link(self) -> Link:
        """Its downloads."""
        return Link(self.seen.moves)

    @property
    def rate(self) -> float:
        """Images that the encoder got in a second, while there were some left to download."""
        waits = self._waits
        return sum(size for _, _, size in waits) / (waits[-1][1] - waits[0][0])

    @property
    def waits(self) -> list[float]:
        """The encoder's seconds without a batch, while there were images left to download."""
        return [got - asked for asked, got, _ in self._waits]

    @property
    def _waits(self) -> list[tuple[float, float, int]]:
        end = self.link.last_begun
        return [wait for wait in self.watch.waits if wait[1] <= end]

    @property
    def waited(self) -> float:
        """Seconds in all."""
        return sum(self.waits)

    @property
    def longest_wait(self) -> float:
        """The first batch is none: nothing was under way yet."""
        return max(self.waits[1:], default=0.0)

    def told(self) -> dict[str, Any]:
        """The figures."""
        used = self.cpu_seconds + self.seen.cpu_seconds
        return {
            "images_per_second": round(self.rate, 1),
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "downloads_under_way": self.link.told(self.downloads),
            "encoder": {
                "worked_s": round(self.throughput.encoder_seconds, 1),
                "waited_s": round(self.waited, 2),
                "longest_wait_s": round(self.longest_wait, 3),
                "held_up_by_commits_s": round(sum(self.watch.commit_seconds), 2),
                "ended_after_last_begun_s": round(
                    self.watch.waits[-1][1] - self.link.last_begun, 1
                ),
            },
            "cores_busy": round(used / sum(self.seconds.values()), 2),
            "stand_in_cpu_s": round(self.seen.cpu_seconds, 1),
            "embedded": self.throughput.embedded,
            "failed": self.state.failed,
            "equal": self.state.equal,
            "requests": self.seen.requests,
            "unknown": self.seen.unknown,
        }


@dataclass
class Bench:
    """The measurements; each has a home of its own under `top`."""

    site: Remote
    top: Path
    homes: int = 0

    def deployment(self) -> Deployment:
        """In a new home."""
        self.homes += 1
        chosen = {
            "home": self.top / f"home-{self.homes}",
            "dagster_home_path": None,
            "source": "supervisely",
            "server_address": self.site.do("address"),
            "api_token": "token",
            "model_name": "demo",
            "qdrant_url": None,
        }
        return Deployment(load_settings().model_copy(update=chosen))

    @property
    def downloads(self) -> int:
        """EMBED_DOWNLOADS."""
        return load_settings().downloads

    def look(self) -> dict[str, Any]:
        """The first look at a change, and the next one."""
        projects = self.site.do("fill", PROJECT_IMAGES, PROJECTS, TEAMS)
        deployment = self.deployment()
        settle(deployment)
        changed = projects[:: PROJECTS // CHANGED][:CHANGED]
        self.site.do("change", changed)
        self.site.do("told")
        with dagster_instance(deployment.settings) as instance, closing(deployment):
            history = DagsterRuns(instance)
            first, again = [self._looked(deployment, history) for _ in range(2)]
        right = sorted(map(int, first.pop("asked_for"))) == sorted(changed)
        del again["asked_for"]
        return {**first, "of_those_that_changed": right, "again": again}

    def _looked(self, deployment: Deployment, history: DagsterRuns) -> dict[str, Any]:
        started = time.monotonic()
        tick = look_around(deployment, history)
        seconds = time.monotonic() - started
        return {
            "projects": len(tick.listed),
            "seconds": round(seconds, 2),
            "requests": self.site.do("told").requests,
            "runs": len(tick.requests),
            "asked_for": [request.project for request in tick.requests],
            "skipped": {reason: len(names) for reason, names in tick.skipped.items()},
        }

    def link(self, images: int, latency: float) -> Link:
        """A bare client: previews downloaded, nothing done with them."""
        project = self.site.do("fill", images)[0]
        plain = f"/previews/q/ext:jpeg/resize:fit:{PREVIEW[0]}:{PREVIEW[0]}:0/q:90/plain"
        urls = [plain + path for path in self.site.do("paths", project)]
        self.site.do("delay", latency, [])
        self.site.do("told")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        with (
            httpx.Client(base_url=self.site.do("address"), limits=limits) as client,
            ThreadPoolExecutor(self.downloads) as pool,
        ):
            assert all(answer.is_success for answer in pool.map(client.get, urls))
        return Link(self.site.do("told").moves)

    def sync(self, images: int, latency: float, *, some_slow: bool = False) -> Synced:
        """A first sync of a new project, with the model loaded."""
        project = self.site.do("fill", images)[0]
        paths = self.site.do("paths", project)
        late = paths[SLOW_EVERY // 2 :: SLOW_EVERY] if some_slow else []
        self.site.do("delay", latency, late)
        with closing(self.deployment()) as deployment:
            warm_up(deployment)
            self.site.do("told")
            run, watch = ProjectRun(deployment, str(project), "benchmark"), Watch()
            cpu = time.process_time()
            with watch.watching():
                seconds, throughput, state = steps(run)
            used = time.process_time() - cpu
        told = self.site.do("told")
        return Synced(self.downloads, seconds, throughput, state, watch, told, used)


def settle(deployment: Deployment) -> None:
    """What the sensor knows after a sync of every project."""
    noticed = {}
    for project in deployment.source.projects():
        token = deployment.source.revision(project, as_listed=True)[1]
        noticed[project] = Noticed(project, settled=deployment.revision(token))
    write_noticed(noticed, deployment.home.noticed(deployment.source.source_id))


def warm_up(deployment: Deployment) -> None:
    """Load the model."""
    size = deployment.card.preprocessing.size
    pixels = np.zeros((deployment.settings.batch_size, size, size, 3), np.uint8)
    deployment.encoder(deployment.card).encode_images(pixels)


def steps(run: ProjectRun) -> tuple[dict[str, float], Throughput, CollectionState]:
    """A sync step by step, with the seconds of each."""
    todo: dict[str, Step] = {"scan": scan, "diff": diff, "embed": embed, "apply": apply}
    seconds, done = {}, {}
    for name, step in todo.items():
        started = time.monotonic()
        done[name] = step(run)
        seconds[name] = time.monotonic() - started
    return seconds, done["embed"], done["apply"]


def jpeg(seed: int) -> bytes:
    """A preview as the resizer makes it."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(PREVIEW).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def png() -> bytes:
    """An original that is small to hold: only its size is ever looked at."""
    Image.new("1", ORIGINAL).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
