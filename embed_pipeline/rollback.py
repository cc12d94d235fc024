"""Going back to the model that a project was searched with before."""

from dataclasses import dataclass

from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import CollectionMissing
from embed_pipeline.lease import lease
from embed_pipeline.serving import roll_back
from embed_pipeline.watching import look_again


@dataclass(frozen=True)
class RolledBack:
    """Which space and model a project is searched with from now on."""

    project_id: str
    space: str
    model: str


def roll_back_project(deployment: Deployment, project: str) -> RolledBack:
    """Search the project in its previous space, from one moment to the next.

    What was added since the change is not there yet: the sensor asks for a run that adds it.
    Raises NothingToRollBack; ModelError where that model is gone; CollectionMissing where its points
    are; LeaseHeld where a run works on the project.
    """
    home = deployment.project_home(project)
    with lease(home, project, "rollback", deployment.settings.lease_wait_seconds):
        card = deployment.previous_card(project)
        if card and not deployment.collection(project, card).exists():
            raise CollectionMissing(
                f"{project}: nothing is left of the previous space {card.space}; set EMBED_MODEL instead"
            )
        serving = roll_back(home, project)
    look_again(deployment, project)
    return RolledBack(project, serving.now.space, serving.now.model)
