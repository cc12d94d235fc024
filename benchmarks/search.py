"""How long searches take: alone, over HTTP, many at once, and while a run writes.

python -m benchmarks.search [--vectors 100000] [--new 3000]

prints one JSON line, times in milliseconds. alone: in this process, 512 numbers a vector, texts encoded
before. http: whole text searches of `embed-pipeline serve` with the demo model, one after the other. at_once:
of 50 clients. while_writing: a sync of `--new` images in another process, searches of the project that it
writes (written), and of another one (other), both of so many vectors.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from transformers import CLIPConfig

from benchmarks.machine import machine, versions
from benchmarks.models import write_random_clip
from benchmarks.noop import write_images
from benchmarks.projects import make_project, vectors_like_images
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.models.hub import model_directory
from embed_pipeline.process import collect_rarely
from embed_pipeline.search.query import Query
from embed_pipeline.search.searcher import Searcher

PROGRAM = [sys.executable, "-m", "embed_pipeline.cli"]
PORT = 8791
SEARCHES = 500
CLIENTS = 50
PAUSE_SECONDS = 0.02
TEXTS = [f"number {number}" for number in range(100)]


def main() -> None:
    """Set up, measure, print."""
    collect_rarely()  # as `embed-pipeline serve` does
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / "root").mkdir()
        model = wide_model(Path(top) / "model")
        here = {"EMBED_SOURCE": f"folder:{top}/root", "EMBED_HOME": f"{top}/home"}
        os.environ |= here | {"EMBED_MODEL": str(model)}
        deployment = open_deployment()
        make_project(deployment, deployment.card, "other", options.vectors)
        alone = measure_alone(Searcher(deployment))
        while_writing = measure_while_writing(deployment, options.vectors, options.new)
        deployment.close()
        os.environ |= {"EMBED_HOME": f"{top}/demo", "EMBED_MODEL": "demo"}
        demo = open_deployment()
        make_project(demo, demo.card, "other", options.vectors)
        demo.close()
        over_http = measure_http()
    report = {"vectors": options.vectors, "alone": alone} | over_http
    report |= {"while_writing": while_writing, "machine": machine(), "versions": versions()}
    print(json.dumps(report))


def wide_model(folder: Path) -> Path:
    """As fast as the demo model, with random weights and 512 numbers a vector."""
    config = CLIPConfig.from_pretrained(model_directory("demo"))
    config.projection_dim = 512
    return write_random_clip(folder, config)


def measure_alone(searcher: Searcher) -> dict[str, dict[str, float]]:
    """One search after another, of a text, of an image, of both with a negative."""
    image = "set-03/00000003.jpg"
    kinds: dict[str, Callable[[str], Query]] = {
        "text": lambda text: Query(texts=[text]),
        "image": lambda _: Query(like=[image]),
        "both": lambda text: Query(texts=[text], like=[image], not_texts=[TEXTS[0]]),
    }
    for text in TEXTS:
        searcher.search("other", Query(texts=[text]))
    found = {}
    for kind, query in kinds.items():
        queries = [query(TEXTS[number % len(TEXTS)]) for number in range(SEARCHES)]
        found[kind] = summary([_seconds(lambda q=q: searcher.search("other", q)) for q in queries])
    return found


def measure_while_writing(deployment: Deployment, count: int, new: int) -> dict[str, object]:
    """Latencies while `embed-pipeline sync` embeds and writes; nothing must be lost."""
    folder = Path(os.environ["EMBED_SOURCE"].partition(":")[2]) / "written"
    write_known(deployment, folder, count)
    sync = [*PROGRAM, "sync", "written", "--json"]
    subprocess.run(sync, check=True, capture_output=True)
    write_images(folder / "new", new)
    searcher = Searcher(deployment)
    for project in ("written", "other"):
        searcher.search(project, Query(texts=["a text"]))
    run = subprocess.Popen(sync, stdout=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(2) as threads:
        watches = {
            project: threads.submit(_watch, searcher, project, run)
            for project in ("written", "other")
        }
        told = json.loads(run.communicate()[0])
        latencies = {project: watch.result() for project, watch in watches.items()}
    deployment.close()
    verified = subprocess.run([*PROGRAM, "verify", "written"], check=False, capture_output=True)
    return {
        "embedded": told[0]["embed"],
        "unchanged": told[0]["unchanged"],
        "nothing_lost": verified.returncode == 0,
        **{project: summary(seconds) for project, seconds in latencies.items()},
    }


def write_known(deployment: Deployment, folder: Path, count: int) -> None:
    """Files whose contents have a vector in the library: a sync indexes them without reading a picture."""
    folder.mkdir()
    library = deployment.library(deployment.card)
    number = 0
    for vectors in vectors_like_images(count, deployment.card.dimension, seed=1):
        hashes = []
        for _ in vectors:
            content = f"content {number}".encode()
            (folder / f"{number:06}.png").write_bytes(content)
            hashes.append(hashlib.sha256(content).digest())
            number += 1
        library.add(pl.Series(hashes), vectors)


def _watch(searcher: Searcher, project: str, run: "subprocess.Popen[str]") -> list[float]:
    seconds, number = [], 0
    while run.poll() is None:
        query = Query(texts=[TEXTS[number % len(TEXTS)]])
        seconds.append(_seconds(lambda q=query: searcher.search(project, q)))
        number += 1
        time.sleep(PAUSE_SECONDS)
    return seconds


def measure_http() -> dict[str, object]:
    """Whole requests to the service: one after the other, then from 50 clients at once."""
    with serving() as address:
        with httpx.Client(base_url=address, timeout=60) as client:
            for _ in range(20):
                _search(client, 0)
            alone = [_seconds(lambda n=n: _search(client, n)) for n in range(SEARCHES)]
        failed: list[int] = []
        together: list[float] = []
        gate = threading.Barrier(CLIENTS)

        def many() -> None:
            with httpx.Client(base_url=address, timeout=60) as client:
                gate.wait()
                for number in range(10):
                    began = time.perf_counter()
                    if _search(client, number) != httpx.codes.OK:
                        failed.append(number)
                    together.append(time.perf_counter() - began)

        with ThreadPoolExecutor(CLIENTS) as threads:
            for client_done in [threads.submit(many) for _ in range(CLIENTS)]:
                client_done.result()
    at_once = {"clients": CLIENTS, "errors": len(failed)} | summary(together)
    return {"http": summary(alone), "at_once": at_once}


@contextmanager
def serving() -> Iterator[str]:
    """`embed-pipeline serve`, up."""
    address = f"http://127.0.0.1:{PORT}"
    environment = os.environ | {"EMBED_API_REQUESTS_PER_MINUTE": "1000000"}
    process = subprocess.Popen([*PROGRAM, "serve", "--port", str(PORT)], env=environment)
    try:
        while True:
            try:
                if httpx.get(f"{address}/health/ready").status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _search(client: httpx.Client, number: int) -> int:
    body = {"project": "other", "query": {"texts": [f"a photo of thing {number}"]}}
    return client.post("/v1/search", json=body).status_code


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    told = {"p50": p50, "p99": p99, "max": max(seconds)}
    return {"searches": len(seconds)} | {name: round(1000 * s, 1) for name, s in told.items()}


if __name__ == "__main__":
    main()
