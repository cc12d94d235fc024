"""Tests: promises of one sentence each, over real files, stores and processes."""
