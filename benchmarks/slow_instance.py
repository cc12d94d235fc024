"""A stand-in Supervisely instance in a process of its own, whose previews come late, some of them very."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from embed_pipeline_tests.supervisely_faults import slow
from embed_pipeline_tests.supervisely_lists import Reply
from embed_pipeline_tests.supervisely_server import StandIn

SLOW_SECONDS = 8.0
ORIGINAL = (1600, 1200)
PREVIEW = (86, 64)
PREVIEWS = 64  # that differ; they are given in turn


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


def jpeg(seed: int) -> bytes:
    """A preview as the resizer makes it."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(PREVIEW).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def png() -> bytes:
    """An original that is small to hold: only its size is ever looked at."""
    Image.new("1", ORIGINAL).save(file := io.BytesIO(), "PNG")
    return file.getvalue()
