"""Check this machine, or every host of its Ray cluster, and say how to fix what will not work.

``python -m dcgan_dist.doctor``; with the settings of a run (``--config FILE --cluster.storage URL``), it says whether
that run will work. Exit status 1 if something will fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcgan_dist.command_line import parse_settings, run
from dcgan_dist.config import Config
from dcgan_dist.errors import ClusterError, DcganDistError
from dcgan_dist.launch.locations import lasting_output
from dcgan_dist.machine import Finding, checks_of_machine, examine
from dcgan_dist.settings import INLINE, Group

PROG = "dcgan-dist doctor"

SECONDS = 4.3  # time limit for the checks of a machine; connecting to the hosts of a cluster takes longer

Findings = dict[str, list[Finding]]


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Group):
    """Settings of `doctor`: those of the run that is to work, and what is shown."""

    train: Config = field(default_factory=Config, metadata=INLINE)
    storage: str | None = None
    """Folder or URL for results that is tried. Left out, cluster.storage, else run_dir."""
    json: bool = False
    """Whether to print the findings as JSON."""


def doctor_command(arguments: Sequence[str]) -> None:
    """Examine the machine or cluster, and print the findings.

    Raises:
        DcganDistError: something will fail.
    """
    config = parse_settings(DoctorConfig, arguments, PROG, __doc__ or "")
    location = lasting_output(config.storage or config.train.cluster.storage or config.train.run_dir or "runs")
    found = _of_cluster(config, location) or _of_this_machine(config, location)
    if config.json:
        hosts = {host: [dataclasses.asdict(finding) for finding in findings] for host, findings in found.items()}
        print(json.dumps({"hosts": hosts}, indent=1))
    else:
        print("\n\n".join(f"{host}\n{_table(findings)}" for host, findings in found.items()), flush=True)
    failing = dict.fromkeys(
        finding.name for findings in found.values() for finding in findings if finding.status == "fail"
    )
    if failing:
        raise DcganDistError(f"will fail: {', '.join(failing)}")


def _of_this_machine(config: DoctorConfig, location: str) -> Findings:
    return {f"{socket.gethostname()} (this machine)": examine(checks_of_machine(config.train, location), SECONDS)}


def _of_cluster(config: DoctorConfig, location: str) -> Findings:
    """Return the findings of the cluster that RAY_ADDRESS or `ray start` names; {} if there is none."""
    named, note = os.environ.get("RAY_ADDRESS", ""), _address_file()
    started = "" if named else _read(note)
    if (named or started) in ("", "local"):
        return {}
    from dcgan_dist.launch.hosts import examine_hosts

    try:
        return examine_hosts(named or started, config.train, location, SECONDS)
    except ClusterError as error:
        cluster = Finding("Ray cluster", "fail", str(error))
    if started:
        dead = f"the one of `ray start`, {started}, does not answer"
        cluster = Finding("Ray cluster", "warn", dead, f"`ray stop` removes {note}, which names it")
    return {host: [cluster, *findings] for host, findings in _of_this_machine(config, location).items()}


def _address_file() -> Path:
    """Return the file into which `ray start` writes the address of its cluster."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")


def _read(note: Path) -> str:
    with contextlib.suppress(OSError):
        return note.read_text(encoding="utf-8").strip()
    return ""


def _table(findings: Sequence[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    return "\n".join(
        f"  {finding.status:4}  {finding.name:{width}}  " + ": ".join(filter(None, (finding.found, finding.way_out)))
        for finding in findings
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(doctor_command, PROG, arguments, prints_result=True)


if __name__ == "__main__":
    sys.exit(main())
