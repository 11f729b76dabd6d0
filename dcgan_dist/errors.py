"""Every error that a person can meet, and the exit status that a command ends with.

::

    DcganDistError               1   a failure of the program's own
    ├── InputError               2   something that a person gave is wrong; the message says what and the way out
    │   ├── ConfigError              a setting: unknown key, wrong type, value out of range
    │   │   └── NeedsChoice          a figure needs what only a person can choose
    │   ├── DataError                a source or a set of shards
    │   │   └── Unreachable          remote shards that could not be read after several tries
    │   ├── RunDirectoryError        a run directory: in use, unwritable, of another run
    │   └── ClusterError             more workers than the cluster has
    ├── StorageError             1   results could not be written or read back: full disk, object storage out of reach
    ├── WorkerFailed             1   a worker process died and was not replaced
    ├── TrialsFailed             1   every single trial of a sweep failed
    ├── Diverged                 3   a loss or gradient became non-finite; never retried
    └── Stopped              128+n   ended by signal n after a last checkpoint

A message is one line: it names the offending value and the way out.
"""

from __future__ import annotations

DOCTOR = "; `python -m dcgan_dist doctor` says more"


class DcganDistError(Exception):
    """Base of all errors raised on purpose."""

    exit_status: int = 1
    says_more: str = ""  # what a command adds to the message


class InputError(DcganDistError, ValueError):
    """What a person gave cannot be used."""

    exit_status = 2


class ConfigError(InputError):
    """A setting has an unknown key, a wrong type or a value out of range."""


class NeedsChoice(ConfigError):
    """A figure needs what only a person can choose, such as boxes over samples."""


class DataError(InputError):
    """A source of images or a set of shards cannot be used."""


class Unreachable(DataError):
    """Remote storage did not give a file after several tries."""


class RunDirectoryError(InputError):
    """A run directory is in use, cannot be written, or belongs to another run."""


class ClusterError(InputError):
    """The cluster does not have what the run asks for."""

    says_more = DOCTOR


class StorageError(DcganDistError):
    """Results could not be written or read back: a full disk, object storage out of reach."""

    says_more = DOCTOR


class WorkerFailed(DcganDistError):
    """A worker process died and ``cluster.max_failures`` does not allow another try."""

    says_more = DOCTOR


class TrialsFailed(DcganDistError):
    """Every single trial of a sweep failed."""


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
