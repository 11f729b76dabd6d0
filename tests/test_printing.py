"""The output of a command may be closed, full, or support few characters: the command still does its work."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, environment, options, wait_for_line
from tests.processes import start_training

BEGIN = "import sys; from dcgan_dist.command_line import run\n"
PRINT = f"{BEGIN}sys.exit(run(lambda words: print(chr(228) * 99999), 'test'))"
RESULT = f"{BEGIN}sys.exit(run(lambda words: print(chr(228) * 99999), 'test', prints_result=True))"
HELP = f"{BEGIN}from dcgan_dist.compare import main; sys.exit(main(['--help']))"
FULL = "test: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("code", "redirection", "status", "errors"),
    [
        (PRINT, "| head -c 1 >/dev/null", 0, ""),
        (PRINT, "2>&1 | true", 0, ""),
        (PRINT, ">&- <&-", 0, ""),
        (PRINT, ">/dev/null 2>&-", 0, ""),
        (PRINT, ">/dev/full", 0, ""),
        (RESULT, "| true", 0, ""),
        (RESULT, ">/dev/full", 1, FULL),
        (HELP, "| true", 0, ""),
        (HELP, ">/dev/full", 1, FULL.replace("test", "dcgan-dist compare")),
    ],
)
def test_commands_print_to_any_output(code: str, redirection: str, status: int, errors: str) -> None:
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    line = f'set -o pipefail; "{sys.executable}" -c "$CODE" {redirection}'
    words = ["bash", "-c", line]
    done = subprocess.run(words, env={**os.environ, **own, "CODE": code}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, errors)


def test_a_closed_stream_is_not_taken_by_the_next_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from dcgan_dist.command_line import run\n"
        "def work(words):\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('lost', flush=True); os.write(2, b'lost'); os.write(1, b'lost'); file.write('kept')\n"
        "sys.exit(run(work, 'test'))"
    )
    line = f'"{sys.executable}" -c "$CODE" {tmp_path / "file"} <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line], env={**os.environ, "CODE": code}, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "kept"


def test_a_closed_terminal_does_not_end_a_command(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    code = (
        "import sys; from dcgan_dist.command_line import run\n"
        "def work(words):\n"
        "    print('begun'); sys.stdin.read(); print('more'); print('and', file=sys.stderr)\n"
        "    open(sys.argv[1], 'w').close()\n"
        "sys.exit(run(work, 'test'))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "done")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert os.read(leader, 5) == b"begun"
    os.close(leader)
    process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


def test_readers_of_both_streams_that_end_do_not_end_training(tmp_path: Path) -> None:
    words = options({**TINY, "run_dir": tmp_path / "run"})
    with start_training(words, environment(), streams=1) as running:
        wait_for_line(running.streams[0], "starting")
        running.streams[0].close()
        running.process.join(60)
    assert running.process.exitcode == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"
