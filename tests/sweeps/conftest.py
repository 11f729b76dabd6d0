"""The object store and the locations of the tests of results, also for the ledger of a sweep."""

from tests.runs.conftest import location, s3_server

__all__ = ["location", "s3_server"]
