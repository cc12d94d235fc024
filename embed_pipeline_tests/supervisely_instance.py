"""What a stand-in Supervisely instance holds, and what a test may do to it behind the API's back.

Every change is dated by the instance's own clock and goes up to the dataset and the project, as on the
platform. With a state file, each change is on disk before the call that made it returns.
"""

import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

from embed_pipeline_tests.supervisely_records import (
    Collection,
    Dataset,
    Image,
    Project,
    Team,
    Workspace,
    as_text,
    content_hash,
    header,
)

P = ParamSpec("P")
R = TypeVar("R")

LINKS = "/links/"
STORAGE = "/b-public/images/original/"


def changes(
    method: Callable[Concatenate["Instance", P], R],
) -> Callable[Concatenate["Instance", P], R]:
    """Run it alone, and keep what it changed."""

    @wraps(method)
    def alone(self: "Instance", *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            result = method(self, *args, **kwargs)
            self.keep()
            return result

    return alone


class Instance:
    """The state.

    tokens: API tokens that are let in. access_token: what `instance.admin-info` gives the first of them
    for. skew: seconds by which the instance's clock is ahead of this machine's.
    bumps_on_stamp: stamping images, and flags of a project, also date them anew.
    nulls_on_change: an image whose bytes are replaced loses its stamp.
    links: bytes at `/links/<name>`. canned_preview: what every preview is, where given.
    users: who each token is of. hidden: projects that a token is not shown. apps: where each task that
    takes requests is.
    """

    def __init__(
        self,
        tokens: tuple[str, ...] = ("token",),
        access_token: str = "access",
        state_file: Path | None = None,
    ) -> None:
        self.tokens = tokens
        self.access_token = access_token
        self.state_file = state_file
        self.skew = 0.0
        self.bumps_on_stamp = False
        self.nulls_on_change = True
        self.canned_preview: bytes | None = None
        self.users: dict[str | None, int] = {token: 5 + n for n, token in enumerate(tokens)}
        self.hidden: dict[str | None, set[int]] = {}
        self.apps: dict[int, str] = {}
        self.links: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.teams: dict[int, Team] = {}
        self.workspaces: dict[int, Workspace] = {}
        self.projects: dict[int, Project] = {}
        self.datasets: dict[int, Dataset] = {}
        self.images: dict[int, Image] = {}
        self.collections: dict[int, Collection] = {}
        self.lock = threading.RLock()
        self._last_id = 0
        self._last_moment = 0

    @classmethod
    def load(cls, state_file: Path) -> Self:
        """What another process kept there."""
        instance: Self = pickle.loads(state_file.read_bytes())
        instance.state_file = state_file
        return instance

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    def keep(self) -> None:
        """Write the state file, if there is to be one; a reader finds the old or the new one, whole."""
        if self.state_file:
            new = self.state_file.with_name(self.state_file.name + ".new")
            new.write_bytes(pickle.dumps(self))
            os.replace(new, self.state_file)

    def now(self) -> str:
        """The instance's time; each call's is at least a millisecond after that of the call before."""
        with self.lock:
            early = self._last_moment + 1 - self._wall()
            if early == 1:  # else many changes in a row would drive the clock ahead of the wall's
                time.sleep(0.001)
            self._last_moment = max(self._last_moment + 1, self._wall())
            return as_text(self._last_moment)

    def next_id(self) -> int:
        """Greater than any before; no two things of any kind share one."""
        self._last_id += 1
        return self._last_id

    @changes
    def configure(self, **knobs: Any) -> None:
        """Set `skew`, `bumps_on_stamp`, `nulls_on_change`, `canned_preview`."""
        known = {"skew", "bumps_on_stamp", "nulls_on_change", "canned_preview"}
        if unknown := set(knobs) - known:
            raise ValueError(f"no such knobs: {unknown}")
        vars(self).update(knobs)

    @changes
    def add_team(self, name: str, plan: str | None = "pro") -> int:
        """A team's id."""
        team = Team(self.next_id(), name, plan)
        self.teams[team.id] = team
        return team.id

    @changes
    def add_workspace(self, team_id: int, name: str = "main") -> int:
        """A workspace's id."""
        at = self.now()
        workspace = Workspace(self.next_id(), name, self.teams[team_id].id, at, at)
        self.workspaces[workspace.id] = workspace
        return workspace.id

    @changes
    def add_project(
        self,
        name: str,
        team_id: int,
        workspace: int | None = None,
        *,
        embeddings_enabled: bool | None = True,
        type: str = "images",  # noqa: A002  # as the platform calls it
    ) -> int:
        """A project's id. It is in the team's first workspace unless another's id is given."""
        if workspace is None:
            ours = (w.id for w in self.workspaces.values() if w.team_id == team_id)
            workspace = next(ours, None) or self.add_workspace(team_id)
        at = self.now()
        project = Project(
            self.next_id(), name, team_id, workspace, type, embeddings_enabled, at, at
        )
        self.projects[project.id] = project
        return project.id

    @changes
    def add_dataset(self, project_id: int, name: str, parent_id: int | None = None) -> int:
        """A dataset's id."""
        at = self.now()
        project = self.projects[project_id]
        team, workspace = project.team_id, project.workspace_id
        id_ = self.next_id()
        self.datasets[id_] = Dataset(id_, name, project_id, team, workspace, parent_id, at, at)
        project.updated_at = at
        return id_

    @changes
    def add_image(
        self,
        dataset_id: int,
        name: str,
        data: bytes,
        link: str | None = None,
        *,
        hash_known: bool = True,
        size_known: bool = True,
    ) -> int:
        """An image's id. The bytes of a linked one are served at its link, if that is `…/links/<name>`."""
        image = self._add(dataset_id, name, data, link, self.now())
        image.hash_known, image.size_known = hash_known, size_known
        return image.id

    @changes
    def add_images(self, dataset_id: int, pictures: Mapping[str, bytes]) -> list[int]:
        """Ids of images by these names, all uploaded in the same millisecond: for many."""
        at = self.now()
        return [self._add(dataset_id, name, data, None, at).id for name, data in pictures.items()]

    def _add(self, dataset_id: int, name: str, data: bytes, link: str | None, at: str) -> Image:
        dataset = self.datasets[dataset_id]
        id_ = self.next_id()
        path = None if link else f"{STORAGE}{id_}{Path(name).suffix}"
        mime, width, height = header(name, data)
        image = Image(
            *(id_, name, dataset.project_id, dataset_id, at, at),
            *(data, path, link, content_hash(data), mime, width, height),
        )
        self.images[id_] = self.projects[dataset.project_id].images[id_] = image
        self._store(image)
        self._date(image, at)
        return image

    @changes
    def replace_image(self, image_id: int, data: bytes, *, same_path: bool) -> None:
        """Other bytes: at the same path, or at a new one, the old bytes staying at the old."""
        image = self.images[image_id]
        image.data, image.hash = data, content_hash(data)
        image.mime, image.width, image.height = header(image.name, data)
        if image.path and not same_path:
            image.path = f"{STORAGE}{image_id}-{self.next_id()}{Path(image.name).suffix}"
        if self.nulls_on_change:
            image.embeddings_updated_at = None
        self._store(image)
        self._date(image)

    @changes
    def annotate(self, image_id: int) -> None:
        """Draw one more label."""
        image = self.images[image_id]
        image.labels_count += 1
        self._date(image)

    @changes
    def rename_image(self, image_id: int, name: str) -> None:
        """Its path stays."""
        image = self.images[image_id]
        image.name = name
        self._date(image)

    @changes
    def move_image(self, image_id: int, dataset_id: int) -> None:
        """To another dataset, of this or another project."""
        image = self.images[image_id]
        self._date(image)
        del self.projects[image.project_id].images[image_id]
        image.dataset_id = dataset_id
        image.project_id = self.datasets[dataset_id].project_id
        images = self.projects[image.project_id].images
        images[image_id] = image
        self.projects[image.project_id].images = dict(sorted(images.items()))
        self._date(image)

    @changes
    def trash_image(self, image_id: int) -> None:
        """Disable it, as every removal on the platform does at first."""
        self.disable([image_id])

    def disable(self, image_ids: list[int]) -> None:
        """Put all of them into the trash in the same moment."""
        at = self.now()
        for image_id in image_ids:
            self.images[image_id].disabled = True
            self._date(self.images[image_id], at)

    @changes
    def restore_image(self, image_id: int) -> None:
        """Take it out of the trash."""
        image = self.images[image_id]
        image.disabled = False
        self._date(image)

    @changes
    def rename_dataset(self, dataset_id: int, name: str) -> None:
        """Its images are not dated anew."""
        dataset = self.datasets[dataset_id]
        dataset.name = name
        dataset.updated_at = self.projects[dataset.project_id].updated_at = self.now()

    @changes
    def remove_dataset(self, dataset_id: int) -> None:
        """It leaves the list with all that are nested in it; their images go into the trash."""
        gone = self.nested(dataset_id)
        project = self.projects[self.datasets[dataset_id].project_id]
        project.updated_at = self.now()
        inside = (i for i in project.images.values() if i.dataset_id in gone and not i.disabled)
        self.disable([image.id for image in inside])
        for id_ in gone:
            self.datasets[id_].removed = True

    def nested(self, dataset_id: int) -> set[int]:
        """The ids of a dataset and of all that are nested in it."""
        found = {dataset_id}
        for dataset in self.datasets.values():  # a parent is older than what is nested in it
            if dataset.parent_id in found:
                found.add(dataset.id)
        return found

    @changes
    def remove_project(self, project_id: int) -> None:
        """Nothing of it can be asked for any more, but for the paths of its originals."""
        for image_id in self.projects.pop(project_id).images:
            del self.images[image_id]
        for things in (self.datasets, self.collections):
            for id_ in [t.id for t in things.values() if t.project_id == project_id]:
                del things[id_]

    @changes
    def set_enabled(self, project_id: int, enabled: bool | None) -> None:  # noqa: FBT001  # the switch itself
        """Switch AI search on or off."""
        project = self.projects[project_id]
        project.embeddings_enabled = enabled
        project.updated_at = self.now()

    @changes
    def set_plan(self, team_id: int, plan: str | None) -> None:
        """Give a team another plan."""
        self.teams[team_id].plan = plan

    def project(self, project_id: int) -> Project:
        """Its state."""
        return self.projects[project_id]

    def image(self, image_id: int) -> Image:
        """Its state."""
        return self.images[image_id]

    def stamped(self, project_id: int) -> dict[int, str | None]:
        """When each image was embedded, those in the trash included."""
        with self.lock:
            images = self.projects[project_id].images.values()
            return {image.id: image.embeddings_updated_at for image in images}

    def original(self, place: str) -> bytes | None:
        """The bytes at a path of ours, or at a link."""
        if "://" in place and place not in self.files:
            place = urlsplit(place).path
        if place.startswith(LINKS):
            return self.links.get(place.removeprefix(LINKS))
        return self.files.get(place)

    def content(self, image: Image) -> bytes | None:
        """An image's bytes, from where they are served."""
        return self.original(image.path or image.link or "")

    def _store(self, image: Image) -> None:
        place = image.path or image.link or ""
        _, ours, name = place.partition(LINKS)
        if ours:
            self.links[name] = image.data
        else:
            self.files[place] = image.data

    def _date(self, image: Image, at: str | None = None) -> None:
        at = at or self.now()
        project = self.projects[image.project_id]
        image.updated_at = self.datasets[image.dataset_id].updated_at = project.updated_at = at

    def _wall(self) -> int:
        return int((time.time() + self.skew) * 1000)
