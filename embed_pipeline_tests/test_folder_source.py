"""Folders as a source: what is an image, of which project, whatever its name, whatever happens meanwhile."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_pipeline.errors import ImageError, ProjectNotFound, SourceUnavailable
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.sources import folder
from embed_pipeline.sources.folder import FolderSource
from embed_pipeline.sources.names import from_text, partition_key, project_of, to_text
from embed_pipeline.sources.protocol import Wanted
from embed_pipeline_tests.conftest import draw

Scan = Callable[[str], pl.DataFrame]
NASTY = [
    "a b",
    "ü🐈",
    "100%",
    "%25",
    "new\nline",
    "a...b",
    "-x",
    "'\"",
    "a,b;c",
    "C:\\x",
    "x" * 200,
]


@pytest.fixture
def source(root: Path, tmp_path: Path) -> FolderSource:
    """The source over `root`."""
    return FolderSource(root, "test", lambda project: tmp_path / "hashes.parquet")


@pytest.fixture
def scan(source: FolderSource) -> Scan:
    """Scan a project into one frame."""
    return lambda project: pl.concat(page.images for page in source.scan(project))


def test_sub_folders_are_projects_and_their_folders_datasets(
    root: Path, source: FolderSource, scan: Scan
) -> None:
    """Nested datasets are joined with a slash; content hash, size and locator are the file's own."""
    path = draw(root / "cats" / "day" / "porch" / "tom.JPG", 1, size=(64, 48))
    draw(root / "cats" / "at top.webp", 2)
    (root / "cats" / "notes.txt").write_text("no image")
    (root / "cats" / ".hidden.png").write_bytes(path.read_bytes())
    (root / "dogs").mkdir()
    assert source.projects() == ["cats", "dogs"]
    rows = scan("cats").sort("image_id").to_dicts()
    assert [(row["image_id"], row["dataset_name"], row["name"]) for row in rows] == [
        ("at top.webp", "", "at top.webp"),
        ("day/porch/tom.JPG", "day/porch", "tom.JPG"),
    ]
    tom = rows[1]
    assert tom["content_hash"] == hashlib.sha256(path.read_bytes()).digest()
    assert (tom["width"], tom["height"], tom["size"]) == (64, 48, path.stat().st_size)
    assert (
        source.fetch("cats", Wanted(tom["locator"], tom["content_hash"], 10**6), Event())
        == path.read_bytes()
    )
    assert sum(page.ignored for page in source.scan("cats")) == 1
    assert scan("dogs").schema == MANIFEST.schema


def test_images_in_the_root_are_a_project_of_their_own(
    root: Path, source: FolderSource, scan: Scan
) -> None:
    """A stray image in the root adds a project and takes none away, also where names clash."""
    draw(root / "cats" / "tom.png", 1)
    draw(root / "stray.png", 2)
    assert source.projects() == ["cats", "root"]
    assert scan("root")["image_id"].to_list() == ["stray.png"]
    draw(root / "root" / "inner.png", 3)
    assert source.projects() == ["cats", "root", "root/"]
    assert scan("root")["image_id"].to_list() == ["inner.png"]
    assert scan("root/")["image_id"].to_list() == ["stray.png"]


def test_supervisely_folders_are_read_as_such(root: Path, source: FolderSource, scan: Scan) -> None:
    """`meta.json` and `DATASET/img/*`: only those images, under their dataset's name, nested ones too."""
    project = root / "sly"
    draw(project / "ds1" / "img" / "a.png", 1)
    draw(project / "ds1" / "seg" / "mask.png", 2)
    draw(project / "ds1" / "datasets" / "nested" / "img" / "b.png", 3)
    (project / "meta.json").write_text(json.dumps({"classes": []}))
    (project / "ds1" / "ann").mkdir()
    (project / "ds1" / "ann" / "a.png.json").write_text("{}")
    rows = scan("sly").sort("image_id").select("image_id", "dataset_name").rows()
    assert rows == [
        ("ds1/datasets/nested/img/b.png", "ds1/nested"),
        ("ds1/img/a.png", "ds1"),
    ]
    draw(root / "plain" / "a.png", 4)
    (root / "plain" / "meta.json").write_text("{}")
    assert scan("plain")["image_id"].to_list() == ["a.png"]


@pytest.mark.parametrize("name", [*map(os.fsencode, NASTY), b"\xff\xfe", b"caf\xe9"])
def test_any_file_name_comes_back(
    root: Path, source: FolderSource, scan: Scan, name: bytes
) -> None:
    """Spaces, unicode, percent signs, newlines and bytes that are not UTF-8 name projects and images."""
    picture = draw(root / "plain" / "x.png", 1).read_bytes()
    project = os.path.join(os.fsencode(root), name)
    os.mkdir(project)
    with open(os.path.join(project, name + b".png"), "wb") as file:
        file.write(picture)
    (text,) = set(source.projects()) - {"plain"}
    row = scan(text).row(0, named=True)
    row["name"].encode()
    assert from_text(row["image_id"]) == name + b".png"
    assert (
        source.fetch(text, Wanted(row["locator"], row["content_hash"], 10**6), Event()) == picture
    )


@given(
    st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b and not b.startswith(b"/"))
)
def test_partition_keys_are_plain_and_unique(name: bytes) -> None:
    """Any name becomes a printable ASCII key without `...`, and the key gives the name back."""
    key = partition_key(to_text(name))
    assert key.isascii()
    assert key.isprintable()
    assert "..." not in key
    assert from_text(project_of(key)) == name


def test_links_that_lead_out_or_around_are_not_followed(
    root: Path, tmp_path: Path, source: FolderSource, scan: Scan
) -> None:
    """Links inside the root count as copies; links out of it, loops, pipes and dangling ones do not."""
    inside = draw(root / "cats" / "real" / "a.png", 1)
    outside = draw(tmp_path / "secret" / "b.png", 2)
    (root / "cats" / "inside.png").symlink_to(inside)
    (root / "cats" / "outside.png").symlink_to(outside)
    (root / "cats" / "outdir").symlink_to(outside.parent)
    (root / "cats" / "real" / "loop").symlink_to(root / "cats" / "real")
    (root / "cats" / "dangling.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "cats" / "pipe.png")
    (root / "outproject").symlink_to(outside.parent)
    assert sorted(scan("cats")["image_id"]) == ["inside.png", "real/a.png"]
    assert source.projects() == ["cats"]


def test_a_file_is_read_again_only_if_it_was_touched(
    root: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged files are not read; an edit in place that keeps size and mtime is still seen."""
    path = draw(root / "cats" / "a.bmp", 1)
    other = draw(root / "cats" / "b.bmp", 2)
    monkeypatch.setattr(folder, "SETTLED_NS", -(10**18))
    scan("cats")
    hashed: list[bytes] = []
    hash_file = folder._hash_file
    monkeypatch.setattr(folder, "_hash_file", lambda p, s: (hashed.append(p), hash_file(p, s))[1])
    scan("cats")
    assert hashed == []
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    rows = scan("cats")
    assert hashed == [os.fsencode(path)]
    assert rows["content_hash"].n_unique() == 1


def test_a_hash_is_not_trusted_while_the_file_is_hot(root: Path, scan: Scan) -> None:
    """A file hashed within two seconds of its last change is hashed again: its clock may not tick."""
    draw(root / "cats" / "a.bmp", 1)
    scan("cats")
    hot = folder.HASHES.read(root.parent / "hashes.parquet")
    assert (hot["hashed_at_ns"] - hot["mtime_ns"]).max() < folder.SETTLED_NS


def test_what_vanishes_meanwhile_is_no_error(
    root: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a folder that go between listing and hashing are left out."""
    draw(root / "cats" / "stays.png", 1)
    goes = draw(root / "cats" / "goes.png", 2)
    draw(root / "cats" / "folder" / "x.png", 3)
    hash_file = folder._hash_file

    def slow(path: bytes, stopped: threading.Event) -> object:
        goes.unlink(missing_ok=True)
        shutil.rmtree(root / "cats" / "folder", ignore_errors=True)
        return hash_file(path, stopped)

    monkeypatch.setattr(folder, "_hash_file", slow)
    monkeypatch.setattr(folder.os, "cpu_count", lambda: 1)
    assert "stays.png" in scan("cats")["image_id"].to_list()
    assert scan("cats")["image_id"].to_list() == ["stays.png"]


def test_fetch_says_why_not(root: Path, source: FolderSource) -> None:
    """Gone, changed and too large are told apart; only the last is for good."""
    path = draw(root / "cats" / "a.png", 1)
    digest = hashlib.sha256(path.read_bytes()).digest()

    def reason(content_hash: bytes, limit: int = 10**6) -> tuple[str, bool]:
        with pytest.raises(ImageError) as error:
            source.fetch("cats", Wanted("a.png", content_hash, limit), Event())
        assert error.value.stage == "fetch"
        return error.value.reason, error.value.transient

    assert reason(digest, limit=10) == ("too_many_bytes", False)
    assert reason(b"?" * 32) == ("changed", True)
    path.unlink()
    assert reason(digest) == ("vanished", True)


def test_unknown_projects_and_roots_are_told_apart(root: Path, source: FolderSource) -> None:
    """A project that is not there names those that are; a root that is not there may come back."""
    draw(root / "cats" / "a.png", 1)
    with pytest.raises(ProjectNotFound, match=r"dogs: no such project .*: cats"):
        source.revision("dogs")
    shutil.rmtree(root)
    with pytest.raises(SourceUnavailable) as error:
        source.revision("cats")
    assert error.value.retryable


# Scans the project `cats` as an ordinary user, whoever runs the tests. A process of its own: the
# threads of this one would lose their rights, too.
AS_NOBODY = """
import os, sys
from pathlib import Path
from embed_pipeline.errors import SourceUnavailable
from embed_pipeline.sources.folder import FolderSource
root = Path(sys.argv[1])
source = FolderSource(root, "test", lambda project: root / "hashes" / "hashes.parquet")
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    for page in source.scan("cats"):
        for image_id, content_hash in page.images.select("image_id", "content_hash").rows():
            print(image_id, "hashed" if content_hash else "unread")
except SourceUnavailable as error:
    print(error)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A root that any user can reach, with a place for hashes."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "hashes").mkdir()
        (root / "hashes").chmod(0o777)
        yield root


def scan_as_nobody(root: Path) -> list[str]:
    """What AS_NOBODY prints."""
    command = [sys.executable, "-c", AS_NOBODY, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return sorted(done.stdout.splitlines())


def test_a_folder_that_cannot_be_read_is_an_error(public: Path) -> None:
    """Half a listing is never taken for the whole: the folder is named, with the remedy."""
    draw(public / "cats" / "open" / "a.png", 1)
    closed = draw(public / "cats" / "closed" / "b.png", 2).parent
    closed.chmod(0o000)
    told = scan_as_nobody(public)
    closed.chmod(0o755)
    assert re.search(r"closed: cannot be listed .*nothing was removed", told[-1])


def test_an_unreadable_file_is_a_failed_image(public: Path) -> None:
    """A file that may not be read is in the manifest without a hash, and the others are as ever."""
    draw(public / "cats" / "secret.png", 1).chmod(0o000)
    draw(public / "cats" / "open.png", 2)
    assert scan_as_nobody(public) == ["open.png hashed", "secret.png unread"]
