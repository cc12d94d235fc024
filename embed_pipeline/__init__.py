"""Every image project stays searchable. The main flow is in `sync.py`: read that first."""

__version__ = "0.1.0"
