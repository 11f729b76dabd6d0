"""Fixtures of the tests of runs, for those of what is made of runs."""

from tests.runs.conftest import location, s3_server, start_writer

__all__ = ["location", "s3_server", "start_writer"]
