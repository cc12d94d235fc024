"""Everything the settings name, wired together. The only place that chooses implementations."""

import hashlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

from embed_pipeline.errors import ModelError
from embed_pipeline.home import Home, ProjectHome
from embed_pipeline.images.decode import decoding_conditions
from embed_pipeline.models.card import load_card
from embed_pipeline.models.hub import is_service, model_directory
from embed_pipeline.models.protocol import ImageTextEncoder, ModelCard, rendition_of
from embed_pipeline.serving import Space, serving_of
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.sources.opening import open_source
from embed_pipeline.sources.protocol import ImageSource
from embed_pipeline.stores import open_store
from embed_pipeline.stores.protocol import Collection, VectorStore
from embed_pipeline.vector_library import VectorLibrary


def open_deployment() -> "Deployment":
    """The deployment of the environment's settings. Raises SettingsError."""
    settings = load_settings()
    logging.getLogger("embed_pipeline").setLevel(settings.log_level)
    return Deployment(settings)


@dataclass(frozen=True)
class Deployment:
    """Source, store and model of one set of settings; each is opened when first used.

    share_encoders: have those for any number of threads.
    """

    settings: Settings
    share_encoders: bool = False
    _encoders: dict[ModelCard, ImageTextEncoder] = field(default_factory=dict, init=False)
    _loading: Lock = field(default_factory=Lock, init=False, compare=False)
    _to_close: ExitStack = field(default_factory=ExitStack, init=False, compare=False)

    @cached_property
    def home(self) -> Home:
        """EMBED_HOME."""
        return Home(self.settings.home)

    @cached_property
    def source(self) -> ImageSource:
        """Where the images come from."""
        return open_source(self.settings, self.home)

    @cached_property
    def store(self) -> VectorStore:
        """Where the points live."""
        return open_store(self.settings)

    def close(self) -> None:
        """Let go of store, source and encoders, where they were used."""
        self._to_close.close()
        self._encoders.clear()
        for used in ("store", "source"):
            if used in self.__dict__:
                self.__dict__[used].close()

    @cached_property
    def card(self) -> ModelCard:
        """The target model, not loaded."""
        card = self._load_card(self.settings.model)
        return replace(card, rendition=self.source.rendition(card.preprocessing.size))

    def serving_card(self, project: str) -> ModelCard:
        """The model that a project is searched with: EMBED_MODEL's before its first audit passed.

        Raises ModelError where the model that made its vectors is no longer what it was.
        """
        serving = serving_of(self.project_home(project))
        return self._card_of(project, serving.now) if serving else self.card

    def target_card(self, project: str) -> ModelCard:
        """The model that the project is to be searched with: EMBED_MODEL's, unless rolled back from."""
        serving = serving_of(self.project_home(project))
        if serving and serving.rejected == self.card.space:
            return self._card_of(project, serving.now)
        return self.card

    def previous_card(self, project: str) -> ModelCard | None:
        """The model that a rollback goes back to. Raises ModelError as `serving_card`."""
        serving = serving_of(self.project_home(project))
        return self._card_of(project, serving.previous) if serving and serving.previous else None

    def _card_of(self, project: str, space: Space) -> ModelCard:
        # Not by way of EMBED_MODEL's card: search goes on where that model is not to be had.
        same = space.model == self.settings.model
        loaded = self.card if same else self._load_card(space.model)
        card = replace(loaded, rendition=rendition_of(space.space))
        if card.space != space.space:
            raise ModelError(
                f"{project}: indexed with {space.space}, but {space.model} is now {card.space}; "
                f"sync it again: embed-pipeline sync {project}"
            )
        return card

    def _load_card(self, model: str) -> ModelCard:
        if not is_service(model):
            return load_card(model, self.home.models)
        from embed_pipeline.models.remote import load_remote_card

        return load_remote_card(model, self._key_of(model), self.home.models)

    def _key_of(self, service: str) -> str | None:
        # Another's, from which a project was brought over, is not told this one's key.
        return self.settings.model_api_key if service == self.settings.model else None

    def encoder(self, card: ModelCard) -> ImageTextEncoder:
        """The model behind a card, loaded once. Imports torch, unless a service runs it: takes seconds."""
        if card not in self._encoders:
            with self._loading:
                if card not in self._encoders:
                    self._encoders[card] = self._open_encoder(card)
        return self._encoders[card]

    def _open_encoder(self, card: ModelCard) -> ImageTextEncoder:
        if is_service(card.name):
            from embed_pipeline.models.remote import open_remote_encoder

            remote = open_remote_encoder(card, self._key_of(card.name))
            self._to_close.callback(remote.close)
            return remote
        from embed_pipeline.models.clip import load_encoder

        directory, settings = model_directory(card.name), self.settings
        loaded = load_encoder(card, directory, device=settings.device, precision=settings.precision)
        if not self.share_encoders:
            return loaded
        from embed_pipeline.models.shared import SharedEncoder

        shared = SharedEncoder(loaded, settings.batch_size)
        self._to_close.callback(shared.close)
        return shared

    def revision(self, token: str) -> str:
        """What a run is to reach: the source's token, and the conditions of EMBED_MODEL's space."""
        return f"{token} {self.conditions(self.card.space)}"

    @property
    def limits(self) -> str:
        """What beside content and space decides whether an image can be embedded."""
        decoding = decoding_conditions(self.settings.max_image_pixels)
        return f"{decoding}, {self.settings.max_image_bytes} bytes"

    def conditions(self, space: str) -> str:
        """A digest of what beside the images decides what a collection holds, and where it is."""
        told = f"{space} {self.limits} {self.settings.qdrant_url}"
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def project_id(self, project: str) -> str:
        """The name under which a project's points are stored."""
        return f"{self.source.source_id}/{project}"

    def project_home(self, project: str) -> ProjectHome:
        """A project's own tables."""
        return self.home.project(self.project_id(project))

    def library(self, card: ModelCard) -> VectorLibrary:
        """The vector library of the card's space."""
        return VectorLibrary(self.home.vectors(card.space), card.dimension)

    def collection(self, project: str, card: ModelCard) -> Collection:
        """A project's points in the card's space."""
        return self.store.collection(card.space, card.dimension, self.project_id(project))
