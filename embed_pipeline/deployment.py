"""Everything the settings name, wired together. The only place that chooses implementations."""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import cached_property

from embed_pipeline.errors import ModelError
from embed_pipeline.home import Home, ProjectHome
from embed_pipeline.images.decode import decoding_conditions
from embed_pipeline.models.card import load_card
from embed_pipeline.models.hub import model_directory
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
    """Source, store and model of one set of settings; each is opened when first used."""

    settings: Settings
    _encoders: dict[ModelCard, ImageTextEncoder] = field(default_factory=dict)

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
        """Let go of store and source, where they were used."""
        for used in ("store", "source"):
            if used in self.__dict__:
                self.__dict__[used].close()

    @cached_property
    def card(self) -> ModelCard:
        """The target model, not loaded."""
        card = load_card(self.settings.model, self.home.models)
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
        loaded = self.card if same else load_card(space.model, self.home.models)
        card = replace(loaded, rendition=rendition_of(space.space))
        if card.space != space.space:
            raise ModelError(
                f"{project}: indexed with {space.space}, but {space.model} is now {card.space}; "
                f"sync it again: embed-pipeline sync {project}"
            )
        return card

    def encoder(self, card: ModelCard) -> ImageTextEncoder:
        """The model behind a card, loaded once. Imports torch: takes seconds."""
        if card not in self._encoders:
            from embed_pipeline.models.clip import load_encoder

            directory = model_directory(card.name)
            self._encoders[card] = load_encoder(
                card, directory, device=self.settings.device, precision=self.settings.precision
            )
        return self._encoders[card]

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
