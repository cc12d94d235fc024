"""The methods of a stand-in Supervisely instance for collections of images, as AI search makes them."""

from collections.abc import Callable, Iterable

from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_lists import (
    PAGE,
    Body,
    Refused,
    found,
    method,
    page,
    plain,
)
from embed_pipeline_tests.supervisely_records import Collection

FIELDS = "id name teamId projectId createdAt updatedAt description type"


class CollectionMethods:
    """Answers about collections."""

    instance: Instance

    @method("entities-collections.list", f"{PAGE} projectId type extraFields")
    def _collections(self, body: Body) -> Body:
        project = found(self.instance.projects, body["projectId"], "project")
        ours = [
            collection
            for collection in self.instance.collections.values()
            if collection.project_id == project.id and body.get("type") in (None, collection.type)
        ]
        entity = _entities(body.get("extraFields") or ())
        return page(body, ours, entity, "id name", 500)

    @method("entities-collections.info", "id extraFields")
    def _collection_info(self, body: Body) -> Body:
        collection = found(self.instance.collections, body["id"], "collection")
        return _entities(body.get("extraFields") or ())(collection)

    @method("entities-collections.add", "projectId name type description meta", changes=True)
    def _add_collection(self, body: Body) -> Body:
        project = found(self.instance.projects, body["projectId"], "project")
        name, ours = body["name"], self.instance.collections.values()
        if any(c.name == name and c.project_id == project.id for c in ours):
            raise Refused(400, f"a collection {name} exists", "NONUNIQUE")
        at, id_ = self.instance.now(), self.instance.next_id()
        kind, meta, text = body["type"], body.get("meta", {}), body.get("description", "")
        made = Collection(id_, name, project.id, project.team_id, kind, meta, text, at, at)
        self.instance.collections[id_] = made
        return _entities(["meta"])(made)

    @method("entities-collections.remove", "id hardDelete", changes=True)
    def _remove_collection(self, body: Body) -> Body:
        found(self.instance.collections, body["id"], "collection")
        del self.instance.collections[body["id"]]
        return {"success": True}

    @method("entities-collections.editInfo", "id name description", changes=True)
    def _edit_collection(self, body: Body) -> Body:
        collection = found(self.instance.collections, body["id"], "collection")
        collection.name = body.get("name", collection.name)
        collection.description = body.get("description", collection.description)
        collection.updated_at = self.instance.now()
        return _entities(["meta"])(collection)

    @method(
        "entities-collections.items.bulk.add", "collectionId entityItems entityIds", changes=True
    )
    def _add_items(self, body: Body) -> Body:
        collection = found(self.instance.collections, body["collectionId"], "collection")
        images = self.instance.projects[collection.project_id].images
        scores: dict[int, float | None] = dict.fromkeys(body.get("entityIds", ()))
        for item in body.get("entityItems", ()):
            scores[item["entityId"]] = item.get("meta", {}).get("score")
        if any(score is not None and score > 1 for score in scores.values()):
            raise Refused(400, "a score is 1 at most")
        there = {id_ for id_ in scores if id_ in images and not images[id_].disabled}
        collection.items |= {id_: score for id_, score in scores.items() if id_ in there}
        return _items(scores, there)

    @method("entities-collections.items.bulk.remove", "collectionId entityIds", changes=True)
    def _remove_items(self, body: Body) -> Body:
        items = found(self.instance.collections, body["collectionId"], "collection").items
        there = {id_ for id_ in body["entityIds"] if id_ in items}
        for id_ in there:
            del items[id_]
        return _items(body["entityIds"], there)


def _entities(extra: Iterable[str]) -> Callable[[Collection], Body]:
    names = [*FIELDS.split(), *(["meta"] if "meta" in extra else [])]
    return lambda collection: plain(collection, names) | {"options": {}}


def _items(ids: Iterable[int], there: set[int]) -> Body:
    return {
        "items": [{"id": id_, "entityId": id_} for id_ in ids if id_ in there],
        "missing": [{"entityId": id_} for id_ in ids if id_ not in there],
    }
