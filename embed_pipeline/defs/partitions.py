"""One partition per project; its key is the project's name, percent-encoded."""

import dagster as dg

projects = dg.DynamicPartitionsDefinition(name="image_project")
