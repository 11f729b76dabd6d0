"""The errors that users can get, and the exit status of a command that ends with each.

::

    DcganDistError               1   a failure that is not the user's
    ├── InputError               2   something that the user gave is wrong; the message says what, and what to do
    │   ├── ConfigError              a setting: unknown key, wrong type, value out of range
    │   │   └── NeedsChoice          a figure needs something that only a person can choose
    │   ├── DataError                a source or a set of shards
    │   │   └── Unreachable          remote shards that could not be read after several tries
    │   ├── RunDirectoryError        a run directory: in use, not writable, or of another run
    │   └── ClusterError             more workers than the cluster has
    ├── StorageError             1   results could not be written or read back: full disk, unreachable object storage
    ├── WorkerFailed             1   a worker process died and was not replaced
    ├── TrialsFailed             1   all trials of a sweep failed
    ├── Diverged                 3   a loss or gradient became non-finite; never retried
    └── Stopped              128+n   ended by signal n after a last checkpoint

A message is one line: it names the wrong value, and what to do.
"""

from __future__ import annotations

DOCTOR = "; `python -m dcgan_dist doctor` says more"


class DcganDistError(Exception):
    """Base of all errors raised on purpose."""

    exit_status: int = 1
    says_more: str = ""  # text that a command appends to the message


class InputError(DcganDistError, ValueError):
    """Something that the user gave cannot be used."""

    exit_status = 2


class ConfigError(InputError):
    """A setting has an unknown key, a wrong type or a value out of range."""


class NeedsChoice(ConfigError):
    """A figure needs something that only a person can choose, such as boxes over samples."""


class DataError(InputError):
    """A source of images or a set of shards cannot be used."""


class Unreachable(DataError):
    """Remote storage did not deliver a file after several tries."""


class RunDirectoryError(InputError):
    """A run directory is in use, cannot be written, or belongs to another run."""


class ClusterError(InputError):
    """The cluster does not have the resources that the run needs."""

    says_more = DOCTOR


class StorageError(DcganDistError):
    """Results could not be written or read back: a full disk, unreachable object storage."""

    says_more = DOCTOR


class WorkerFailed(DcganDistError):
    """A worker process died and ``cluster.max_failures`` does not allow another try."""

    says_more = DOCTOR


class TrialsFailed(DcganDistError):
    """All trials of a sweep failed."""


class Diverged(DcganDistError):
    """A loss or a gradient became non-finite; the last finite state is saved."""

    exit_status = 3


class Stopped(DcganDistError):
    """The run was ended by a signal, after a last checkpoint."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        return type(self), (self.signal_number, str(self))
