"""Every image project stays searchable. The main flow is in `embed_pipeline.sync`: read that first."""

__version__ = "0.1.0"
