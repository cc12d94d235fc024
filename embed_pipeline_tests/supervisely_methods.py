"""The methods of the REST API that a stand-in Supervisely instance knows, on top of its state."""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import httpx

from embed_pipeline_tests.supervisely_collections import CollectionMethods
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_lists import (
    KNOWN,
    PAGE,
    Body,
    Refused,
    Reply,
    found,
    method,
    page,
    plain,
    snake,
    token_page,
)
from embed_pipeline_tests.supervisely_records import (
    Dataset,
    Image,
    Project,
    Team,
    Workspace,
    content_hash,
)

VERSION = "6.14.4"
FORWARDED = "tasks.request.direct"
OPEN = ("instance.version", "instance.admin-info")
FLAGS = ("embeddingsEnabled", "embeddingsUpdatedAt", "embeddingsInProgress")
IMAGE_FIELDS = (
    "id name link mime labelsCount datasetId projectId createdAt updatedAt description pathOriginal"
)
PROJECT_FIELDS = "id name workspaceId teamId type createdAt updatedAt customData"
DATASET_FIELDS = "id name projectId teamId workspaceId parentId createdAt updatedAt"

# What lists can be filtered by.
PROJECT_FILTERS = (
    "id projectId workspaceId groupId teamId createdAt updatedAt type"
    " embeddingsEnabled embeddingsInProgress"
)
IMAGE_FILTERS = "id name description labelsCount embeddingsUpdatedAt createdAt updatedAt"
DATASET_FILTERS = "id name parentId"


class Methods(CollectionMethods):
    """Answers, each method's by what it is given."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.address = ""
        self.token: str | None = None

    def answer(self, name: str, body: Body, token: str | None, address: str) -> Reply:
        """What the instance at this address says. Raises Refused."""
        known = KNOWN.get(name)
        if known is None:
            raise Refused(404, f"no method {name}", unknown=True)
        if name not in OPEN and token not in self.instance.tokens:
            raise Refused(401, "Unauthorized")
        if strange := set(body) - known.keys:
            raise Refused(400, f"{name} does not take {sorted(strange)}", unknown=True)
        if name == FORWARDED:  # not under the lock: who answers it asks us
            return self._forwarded(body, token)
        with self.instance.lock:
            self.address, self.token = address, token
            try:
                said = known.answer(self, body)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise Refused(400, f"{name}: {error!r} in {body}", unknown=True) from error
            if known.changes:
                self.instance.keep()
        return said if isinstance(said, Reply) else Reply.of(said)

    @method("instance.version")
    def _version(self, _: Body) -> Body:
        return {"version": VERSION}

    @method("instance.admin-info", "accessToken")
    def _admin_info(self, body: Body) -> Body:
        if body["accessToken"] != self.instance.access_token:
            raise Refused(401, "Unauthorized")
        return {"apiToken": self.instance.tokens[0]}

    @method("users.me")
    def _me(self, _: Body) -> Body:
        return {"id": self.instance.users[self.token], "login": "admin"}

    @method(FORWARDED, "taskId command context state skipResponse timeout")
    def _app(self, _: Body) -> Body:
        raise NotImplementedError  # answered by `_forwarded`

    def _forwarded(self, body: Body, token: str | None) -> Reply:
        """What an app answers, asked in the envelope: with the token of whom the request is from."""
        context = body["context"] | {"apiToken": token}
        asked = {"state": body["state"], "context": context}
        url = f"{self.instance.apps[body['taskId']]}/{body['command']}"
        answer = httpx.post(url, json=asked, timeout=60)
        return Reply(answer.status_code, answer.content, {"Content-Type": "application/json"})

    @method("teams.info", "id")
    def _team(self, body: Body) -> Body:
        return _team(found(self.instance.teams, body["id"], "team"))

    @method("teams.list", PAGE)
    def _teams(self, body: Body) -> Body:
        return page(body, self.instance.teams.values(), _team, "id name", 500)

    @method("workspaces.info", "id")
    def _workspace(self, body: Body) -> Body:
        return _workspace(found(self.instance.workspaces, body["id"], "workspace"))

    @method("workspaces.list", f"{PAGE} teamId")
    def _workspaces(self, body: Body) -> Body:
        team = found(self.instance.teams, body["teamId"], "team")
        ours = [w for w in self.instance.workspaces.values() if w.team_id == team.id]
        return page(body, ours, _workspace, "id name", 500)

    @method("projects.info", "id extraFields")
    def _project_info(self, body: Body) -> Body:
        project = found(self.instance.projects, body["id"], "project")
        if project.id in self.instance.hidden.get(self.token, ()):
            raise Refused(403, f"project {project.id} is not yours")
        return self._project_entities([project], FLAGS)(project)

    @method("projects.list", f"{PAGE} workspaceId fields extraFields")
    def _workspace_projects(self, body: Body) -> Body:
        workspace = found(self.instance.workspaces, body["workspaceId"], "workspace")
        ours = [p for p in self.instance.projects.values() if p.workspace_id == workspace.id]
        extra = [*(body.get("fields") or ()), *(body.get("extraFields") or ())]
        return page(body, ours, self._project_entities(ours, extra), PROJECT_FILTERS, 500)

    @method("projects.list.all", f"{PAGE} skipExported extraFields")
    def _all_projects(self, body: Body) -> Body:
        hidden = self.instance.hidden.get(self.token, ())
        projects = [p for p in self.instance.projects.values() if p.id not in hidden]
        entity = self._project_entities(projects, body.get("extraFields") or ())
        return page(body, projects, entity, PROJECT_FILTERS, 20_000)

    def _project_entities(
        self, projects: Sequence[Project], extra: Iterable[str]
    ) -> Callable[[Project], Body]:
        sets = Counter(d.project_id for d in self.instance.datasets.values() if not d.removed)
        flags = [name for name in FLAGS if name in set(extra)]

        def entity(project: Project) -> Body:
            shown = [image for image in project.images.values() if not image.disabled]
            counts = _counts(shown) | {"datasetsCount": sets[project.id]}
            return plain(project, [*PROJECT_FIELDS.split(), *flags]) | counts

        return entity

    @method(
        "projects.editInfo",
        "id silent name description readme customData embeddingsEnabled embeddingsUpdatedAt",
        changes=True,
    )
    def _edit_project(self, body: Body) -> Body:
        project = found(self.instance.projects, body["id"], "project")
        for key in body.keys() & {"name", "customData", "embeddingsEnabled", "embeddingsUpdatedAt"}:
            setattr(project, snake(key), body[key])
        if not body.get("silent") or self.instance.bumps_on_stamp:
            project.updated_at = self.instance.now()
        return self._project_entities([project], FLAGS)(project)

    @method(
        "projects.embeddings-in-progress.update",
        "id embeddingsInProgress errorMessage",
        changes=True,
    )
    def _set_in_progress(self, body: Body) -> Body:
        project = found(self.instance.projects, body["id"], "project")
        project.embeddings_in_progress = body["embeddingsInProgress"]
        project.error_message = body.get("errorMessage")
        if self.instance.bumps_on_stamp:
            project.updated_at = self.instance.now()
        return {"success": True}

    @method("datasets.info", "id extraFields")
    def _dataset_info(self, body: Body) -> Body:
        dataset = self._dataset(body["id"])
        return self._dataset_entities(dataset.project_id)(dataset)

    @method("datasets.list", f"{PAGE} projectId recursive")
    def _datasets(self, body: Body) -> Body:
        project = found(self.instance.projects, body["projectId"], "project")
        datasets = self.instance.datasets.values()
        listed = [d for d in datasets if d.project_id == project.id and not d.removed]
        if not body.get("recursive"):
            listed = [d for d in listed if d.parent_id is None]
        return page(body, listed, self._dataset_entities(project.id), DATASET_FILTERS, 500)

    def _dataset(self, id_: int) -> Dataset:
        dataset = found(self.instance.datasets, id_, "dataset")
        if dataset.removed:
            raise Refused(404, f"dataset {id_} was removed")
        return dataset

    def _dataset_entities(self, project_id: int) -> Callable[[Dataset], Body]:
        inside: dict[int, list[Image]] = {}
        for image in self.instance.projects[project_id].images.values():
            if not image.disabled:
                inside.setdefault(image.dataset_id, []).append(image)
        return lambda dataset: (
            plain(dataset, DATASET_FIELDS.split()) | _counts(inside.get(dataset.id, []))
        )

    @method("images.info", "id forceMetadataForLinks extraFields")
    def _image_info(self, body: Body) -> Body:
        image = found(self.instance.images, body["id"], "image")
        return self._image_entity(image, body.get("extraFields") or ())

    @method(
        "images.list",
        f"{PAGE} projectId datasetId forceMetadataForLinks recursive fields extraFields filters"
        " showDisabled pagination_mode after",
    )
    def _images(self, body: Body) -> Body:
        listed = self._listed(body)
        fields, extra = body.get("fields"), body.get("extraFields") or ()
        scores: dict[int, float | None] = {}
        for selector in body.get("filters") or ():
            listed, scores = self._selected(listed, selector)

        def entity(image: Image) -> Body:
            whole = self._image_entity(image, extra)
            if image.id in scores:
                whole["aiSearchMeta"] = {"score": scores[image.id]}
            return {name: whole[name] for name in fields if name in whole} if fields else whole

        paging = token_page if body.get("pagination_mode") == "token" else page
        return paging(body, listed, entity, IMAGE_FILTERS, 10_000)

    def _listed(self, body: Body) -> list[Image]:
        disabled = bool(body.get("showDisabled"))
        if (id_ := body.get("datasetId")) is None:
            project = found(self.instance.projects, body["projectId"], "project")
            return [i for i in project.images.values() if i.disabled == disabled]
        project = self.instance.projects[self._dataset(id_).project_id]
        inside = self.instance.nested(id_) if body.get("recursive") else {id_}
        images = project.images.values()
        return [i for i in images if i.disabled == disabled and i.dataset_id in inside]

    def _selected(
        self, images: list[Image], selector: Body
    ) -> tuple[list[Image], dict[int, float | None]]:
        kind, data = selector["type"], selector["data"]
        if kind not in ("entities_ai_search_collection", "entities_collection"):
            raise Refused(400, f"images.list has no selector {kind}", unknown=True)
        items = found(self.instance.collections, data["collectionId"], "collection").items
        if (least := data.get("threshold")) is not None:
            above = data.get("thresholdDirection", "above") == "above"
            beyond = operator.ge if above else operator.le
            items = {id_: s for id_, s in items.items() if s is not None and beyond(s, least)}
        chosen = [i for i in images if (i.id in items) == data.get("include", True)]
        return chosen, items if kind == "entities_ai_search_collection" else {}

    def _image_entity(self, image: Image, extra: Iterable[str]) -> Body:
        entity = plain(image, IMAGE_FIELDS.split())
        entity |= {"hash": image.hash if image.hash_known else None, "size": str(image.size)}
        size = (image.width, image.height) if image.size_known else (None, None)
        entity |= dict(zip(("width", "height"), size, strict=True))
        entity["fullStorageUrl"] = image.link or f"{self.address}{image.path}"
        entity |= {"meta": {}, "tags": [], "createdBy": "admin", "parentId": None}
        if "embeddingsUpdatedAt" in extra:
            entity["embeddingsUpdatedAt"] = image.embeddings_updated_at
        return entity

    @method("images.embeddings-updated-at.update", "images", changes=True)
    def _stamp(self, body: Body) -> Body:
        stamps = {stamp["id"]: stamp["embeddingsUpdatedAt"] for stamp in body["images"]}
        images = [found(self.instance.images, id_, "image") for id_ in stamps]
        for image in images:
            image.embeddings_updated_at = stamps[image.id]
        if self.instance.bumps_on_stamp:
            at = self.instance.now()
            for image in images:
                image.updated_at = self.instance.projects[image.project_id].updated_at = at
        return {"success": True}

    @method("images.bulk.remove", "imageIds", changes=True)
    def _remove_images(self, body: Body) -> Body:
        images = [found(self.instance.images, id_, "image") for id_ in body["imageIds"]]
        self.instance.disable([image.id for image in images])
        return {"success": True}

    @method("images.download", "id")
    def _download(self, body: Body) -> Reply:
        data = self._content(body["id"])
        return Reply(200, data, {"x-content-checksum-sha256": content_hash(data)})

    @method("images.bulk.download", "datasetId imageIds")
    def _download_many(self, body: Body) -> Reply:
        self._dataset(body["datasetId"])
        parts = [
            b'--BND\r\nContent-Disposition: form-data; name="%d"; filename="%d"\r\n\r\n%b\r\n'
            % (id_, id_, self._content(id_))
            for id_ in body["imageIds"]
        ]
        content = {"Content-Type": "multipart/form-data; boundary=BND"}
        return Reply(200, b"".join([*parts, b"--BND--\r\n"]), content)

    def _content(self, id_: int) -> bytes:
        image = found(self.instance.images, id_, "image")
        data = None if image.disabled else self.instance.content(image)
        if data is None:
            raise Refused(404, f"image {id_} has no content")
        return data


def _counts(images: Sequence[Image]) -> Body:
    size = str(sum(image.size for image in images))
    return {"imagesCount": len(images), "itemsCount": len(images), "size": size}


def _team(team: Team) -> Body:
    usage = {"plan": team.plan} if team.plan else None
    return {"id": team.id, "name": team.name, "usage": usage}


def _workspace(workspace: Workspace) -> Body:
    return plain(workspace, ["id", "name", "teamId", "createdAt", "updatedAt"])
