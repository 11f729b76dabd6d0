"""The JSON documents of a run, as types: lines of metrics.jsonl, state.json of a checkpoint, status.json.

A key that is not required is missing where it does not apply, or where an earlier version wrote the document.
"""

from __future__ import annotations

from typing import Literal, NotRequired, Required, TypedDict

Status = Literal["running", "finished", "stopped", "failed", "diverged"]


class DamageEntry(TypedDict):
    """Damage of one kind to one shard: where it begins, and how many images it cost (0 where only a header is bad)."""

    shard: str
    offset: int
    reason: str
    lost: int
    offsets: NotRequired[list[int]]


class Parent(TypedDict):
    """The checkpoint of another trial that a run continues from."""

    trial: str
    step: int
    digest: str


class Signals(TypedDict, total=False):
    """What is measured on the samples of the fixed z; None while there are too few rows."""

    sample_distance: float
    filter_oscillation: float | None
    filter_swing: float | None


class Row(Signals):
    """A line of metrics.jsonl; docs/metrics.md explains the columns."""

    step: int
    epoch: float
    images_seen: int
    loss_d: float
    loss_g: float
    d_real: float
    d_fake: float
    images_per_s: float
    data_wait: float
    lr: float
    images_lost: int
    world_size: int
    time_s: float
    parent: NotRequired[str]
    parent_step: NotRequired[int]
    parent_digest: NotRequired[str]
    damage: NotRequired[list[DamageEntry]]


class DamageState(TypedDict, total=False):
    """The damage that a run has met, as a checkpoint keeps it."""

    found: list[DamageEntry]
    unlogged: list[DamageEntry]


class Cursor(TypedDict):
    """Where in the data a run is."""

    epoch: int
    batch: int
    batch_size: int


class FileDigest(TypedDict):
    """Size and digest of a file."""

    bytes: int
    xxh3_128: str


class State(TypedDict):
    """The content of state.json of a checkpoint: what a run resumes from besides tensors."""

    step: int
    epoch: float
    images_seen: int
    images_lost: int
    lost_in_epoch: NotRequired[int]
    damage: NotRequired[DamageState]
    seconds: float
    cursor: Cursor
    rng: dict[str, str | int]
    world_size: int
    tallies: list[list[float]]
    finite: bool
    last_logged: int
    average_from: NotRequired[int]
    parent: NotRequired[Parent]


class SavedState(State):
    """The same as written: with the files of the checkpoint by name, and a digest of all of it."""

    files: dict[str, FileDigest]
    digest: str


class StatusRecord(TypedDict, total=False):
    """status.json: how a run is, and which process may write it."""

    status: Required[Status]
    reason: str
    host: str
    pid: Required[int]
    machine: str
    process_start: str | None
    session: str
    scratch: str
    writer: str
    locked: bool
    heartbeat: Required[float]
    started: float
    step: int
    steps: int
    images_seen: int
    images_lost: int
    damage: list[DamageEntry]
