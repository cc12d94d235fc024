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
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np

from benchmarks.machine import machine, versions
from benchmarks.slow_instance import PREVIEW, SLOW_SECONDS, Remote, Told, standing_in
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

Step = Callable[[ProjectRun], Any]

TEAMS = 5
PROJECTS = 500
PROJECT_IMAGES = 20
CHANGED = 3

NEAR_SECONDS = 0.05
FAR_SECONDS = 0.2
SLOW_EVERY = 1_000
FEW_IMAGES = 3_000
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


if __name__ == "__main__":
    main()
