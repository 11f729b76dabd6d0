"""Signals end a command with its status told truly; a reader that leaves does not end it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dcgan_dist import compare
from dcgan_dist.command_line import run
from dcgan_dist.errors import Stopped
from dcgan_dist.stopping import STOPPING, ended_by_signals, on_signals
from tests.conftest import TINY, environment, options, wait_for_line
from tests.processes import start_training


@pytest.fixture(autouse=True)
def without_nohup() -> Iterator[None]:
    """The tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_a_command_in_one_line_with_its_status(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(_words: Sequence[str]) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = signal.getsignal(number)
    assert run(wait, "test", []) == 128 + number
    assert capsys.readouterr().err == "test: ended by a signal\n"
    assert signal.getsignal(number) == before


def test_signals_that_come_at_once_count_as_one_and_later_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    with on_signals(taken.append):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert taken == [signal.SIGTERM]
        monkeypatch.setattr("dcgan_dist.stopping.AS_ONE_S", 0.0)
        os.kill(os.getpid(), signal.SIGHUP)
        assert taken == [signal.SIGTERM, signal.SIGHUP]


def test_a_hangup_that_nohup_has_switched_off_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals("never"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_signal_ends_says_the_way_out() -> None:
    with pytest.raises(Stopped, match=r"ended by a signal; run it again"), ended_by_signals("run it again"):
        os.kill(os.getpid(), signal.SIGTERM)


# (signals, seconds between them, line after which they come)
MOMENTS = [
    ((signal.SIGTERM, signal.SIGTERM), 0.01, "step 5/"),
    ((signal.SIGHUP,), 0.0, "step 5/"),
    ((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), 0.0, "step 5/"),
    ((signal.SIGTERM,), 0.0, "starting"),
]


@pytest.mark.parametrize(("numbers", "pause", "line"), MOMENTS)
def test_training_that_is_told_to_stop_leaves_a_checkpoint_and_a_true_status(
    numbers: Sequence[signal.Signals], pause: float, line: str, tmp_path: Path
) -> None:
    words = options({**TINY, "training.steps": 100_000, "run_dir": tmp_path / "run"})
    with start_training(words, environment()) as running:
        wait_for_line(running.streams[0], line)
        for number in numbers:
            os.kill(running.process.pid or 0, number)
            time.sleep(pause)
        code, (_, errors) = running.finish(60)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert code - 128 in numbers
    assert status["status"] == "stopped"
    assert errors.count("\n") == 1
    assert (tmp_path / f"run/checkpoints/step-{status['step']:08d}/state.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp*"))


@pytest.mark.slow
def test_an_impatient_second_signal_leaves_a_true_status(tmp_path: Path) -> None:
    # Steps of a minute, so that the first signal is not obeyed before the second comes.
    slow = {"model.ngf": 512, "model.ndf": 512, "model.image_size": 64, "training.batch_size": 64}
    words = options({**TINY, **slow, "training.steps": 10, "run_dir": tmp_path / "run", "training.sample_count": 4})
    with start_training(words, environment()) as running:
        wait_for_line(running.streams[0], "starting")
        status = tmp_path / "run/status.json"
        deadline = time.monotonic() + 60
        while not (status.exists() and json.loads(status.read_text())["status"] == "running"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(running.process.pid or 0, signal.SIGTERM)
        time.sleep(1.2)
        os.kill(running.process.pid or 0, signal.SIGTERM)
        code, (_, errors) = running.finish(60)
    assert code == 128 + signal.SIGTERM
    assert "second signal" in errors
    assert json.loads(status.read_text())["status"] == "stopped"


def test_a_reader_that_leaves_does_not_end_training(tmp_path: Path) -> None:
    words = options({**TINY, "run_dir": tmp_path / "run"})
    with start_training(words, environment()) as running:
        wait_for_line(running.streams[0], "starting")
        running.streams[0].close()
        running.process.join(60)
        assert running.streams[1].read() == ""
    assert running.process.exitcode == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"


COMMAND = (
    "import sys; from dcgan_dist.command_line import run; sys.exit(run(lambda words: print(chr(228) * 99999), 'test'))"
)


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        ("| head -c 1 >/dev/null", 0, ""),
        (">&-", 0, ""),
        (
            ">/dev/full",
            1,
            "test: cannot write to <stdout>: No space left on device; `python -m dcgan_dist doctor` says more\n",
        ),
        ("2>&- >/dev/null", 0, ""),
    ],
)
def test_commands_print_into_whatever_they_are_given(redirection: str, code: int, errors: str) -> None:
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    line = f'set -o pipefail; "{sys.executable}" -c "{COMMAND}" {redirection}'
    done = subprocess.run(["bash", "-c", line], env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, errors)


def test_a_terminal_that_goes_away_does_not_end_a_command(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    code = (
        "import sys, time; from dcgan_dist.command_line import run\n"
        "def work(words):\n"
        "    print('begun', flush=True); sys.stdin.read(); print('more', flush=True); open(sys.argv[1], 'w').close()\n"
        "sys.exit(run(work, 'test'))"
    )
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(done)], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    assert os.read(leader, 5) == b"begun"
    os.close(leader)
    process.communicate()
    assert process.returncode == 0
    assert done.exists()


def test_a_table_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    assert compare.main([str(tmp_path / "nothing")]) == 2
