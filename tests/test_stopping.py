"""Any signals at any time: a command ends with one line, its work is kept and its status is correct."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from dcgan_dist import stopping
from dcgan_dist.command_line import run
from dcgan_dist.parallel import LocalPool
from dcgan_dist.runs.checkpoints import read_checkpoint, step_of
from dcgan_dist.runs.run import Run
from dcgan_dist.stopping import SIGNALS, Interrupted, noting, on_signals, raising
from dcgan_dist.storage.folder import folder_at
from tests.conftest import TINY, environment, options, wait_for_line
from tests.processes import Moment, start_training
from tests.runs.conftest import s3_server  # noqa: F401 - a fixture

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
TRAINER = "dcgan_dist.training.trainer"


@pytest.fixture(autouse=True)
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No signal has come yet, and none is ignored: the tests may run under nohup."""
    monkeypatch.setattr(stopping, "_newest", stopping._Newest())
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


@pytest.mark.parametrize(
    ("number", "line"),
    [(INT, "interrupted"), (TERM, "ended by a signal (SIGTERM)"), (HUP, "ended by a signal (SIGHUP)")],
)
def test_a_signal_ends_a_command_in_one_line_with_its_status(
    number: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_words: Sequence[str]) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = signal.getsignal(number)
    assert run(work, "test", [], after_signal="begin again") == 128 + number
    assert capsys.readouterr().err == f"test: {line}; begin again\n"
    assert signal.getsignal(number) == before


def test_signals_that_come_at_once_count_as_one_and_later_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    with on_signals(taken.append):
        for number in (TERM, TERM, INT, HUP):
            os.kill(os.getpid(), number)
        assert taken == [TERM]
        with on_signals(taken.append):  # they count as one, in whichever block they come
            os.kill(os.getpid(), INT)
        assert taken == [TERM]
        monkeypatch.setattr(stopping, "SAME_S", 0.0)
        os.kill(os.getpid(), HUP)
        assert taken == [TERM, HUP]


def test_where_a_signal_is_noted_a_second_one_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_S", 0.0)
    with noting() as noted:
        assert noted.number == 0
        os.kill(os.getpid(), HUP)
        assert noted.number == HUP
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), TERM)


def test_sighup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with raising():
            os.kill(os.getpid(), HUP)
            assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_command_is_imported_is_one_line(number: int) -> None:
    # `python -m` imports the package first; the imports after it take some time.
    code = f"import os, sys; sys.argv = ['-m']; import dcgan_dist; os.kill(os.getpid(), {int(number)}); print('on')"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (128 + number, "", 1)


ENDING = """
import os, signal, sys, time
sys.argv = ["-m"]
import dcgan_dist
from dcgan_dist.command_line import run

class SlowToGo:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"goes\\n")
        sleep(5)

kept = SlowToGo()
sys.exit(run(lambda _words: os.kill(os.getpid(), signal.SIGINT), "test", []))
"""


def test_a_signal_while_libraries_are_unloaded_does_not_replace_the_exit_status() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "goes\n"
    time.sleep(1.1)
    process.send_signal(TERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + INT, "test: interrupted\n")


def answer(number: int) -> int:
    time.sleep(0.02)
    return number


@pytest.mark.slow
def test_workers_of_a_pool_leave_signals_to_the_one_that_started_them() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    results = LocalPool(2).run(answer, range(40))
    assert next(results) == 0
    for pid in set(children.read_text().split()) - before:
        for number in SIGNALS:
            os.kill(int(pid), number)
    assert list(results) == list(range(1, 40))


# Training ------------------------------------------------------------------------------------------------------------

STOPPED, FINISHED, NOTHING = "stopped", "finished", None
# The moment, the run's status then, and whether it has a checkpoint of its last step.
MOMENTS = [
    ("dcgan_dist.train.parse_settings", 1, NOTHING),
    (f"{TRAINER}.open_data", 1, NOTHING),
    ("dcgan_dist.training.setup.open_run_directory", 1, STOPPED),
    (f"{TRAINER}.Checkpointer.resume", 1, STOPPED),
    (f"{TRAINER}.Trainer._update", 1, STOPPED),
    ("dcgan_dist.runs.writer.RunWriter.append_metrics", 1, STOPPED),
    ("dcgan_dist.training.checkpoint.save_tensors", 5, STOPPED),
    (f"{TRAINER}.Trainer._finish", 1, FINISHED),
    ("dcgan_dist.train.print_results", 1, FINISHED),
]
RARE_MOMENTS = [
    ("dcgan_dist.train.lasting_output", 1, NOTHING),
    (f"{TRAINER}.resolve_config", 1, NOTHING),
    ("dcgan_dist.runs.lease.Lease.take", 1, STOPPED),
    ("dcgan_dist.training.step.build_networks", 1, STOPPED),
    (f"{TRAINER}.Trainer._write_real_images", 1, STOPPED),
    (f"{TRAINER}.Trainer._draw_samples", 1, STOPPED),
    (f"{TRAINER}.Players.update_generator", 3, STOPPED),
    (f"{TRAINER}.Trainer._draw_samples", 2, STOPPED),
    ("dcgan_dist.runs.writer.RunWriter.commit_checkpoint", 2, STOPPED),
    ("dcgan_dist.runs.writer.RunWriter.prune_checkpoints", 2, STOPPED),
    ("dcgan_dist.runs.writer.RunWriter.close", 1, FINISHED),
]
SETS = [(TERM,), (INT,), (HUP,), (TERM, TERM), (INT, TERM, HUP), (HUP, HUP)]


def end_of(
    words: Sequence[str], moment: Moment, command: str = "train", own: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command that gets signals; return its exit status and stderr, after its last process has ended."""
    with start_training(words, own or environment(), command=command, moment=moment) as running:
        code, (_, errors) = running.finish(60)
        group, deadline = running.process.pid or 0, time.monotonic() + 10
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.05)
            raise AssertionError("a process is left")
    return code, errors


@pytest.mark.parametrize(
    ("number", "where"),
    [
        *enumerate(MOMENTS),
        *(pytest.param(number, where, marks=pytest.mark.slow) for number, where in enumerate(RARE_MOMENTS)),
    ],
)
def test_training_ends_in_order_whenever_signals_come(
    number: int, where: tuple[str, int, str | None], tmp_path: Path
) -> None:
    function, call, standing = where
    signals, folder = SETS[number % len(SETS)], tmp_path / "run"
    words = options({**TINY, "training.steps": 12, "run_dir": folder})
    code, errors = end_of(words, Moment(function, signals, call=call))
    if standing is NOTHING:
        assert not folder.exists()
    else:
        status = json.loads((folder / "status.json").read_text())
        assert (status["status"], status["locked"]) == (standing, False)
        newest = max((folder / "checkpoints").iterdir())
        assert read_checkpoint(newest).step == status["step"]
        assert not list(folder.rglob(".*.writing*"))
    if standing is FINISHED and function != "dcgan_dist.train.print_results":
        assert (code, errors) == (0, "")  # as nothing was left to be stopped
    else:
        assert (code, errors.count("\n")) == (128 + signals[0], 1), errors


# The request to object storage that is in progress, in its own thread, when signals come; seconds between them.
REQUESTS = [(call, 0.01) for call in (2, 8, 14, 20, 26, 32, 38, 44, 50, 68)] + [(call, 1.1) for call in (27, 33, 46)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "when"), enumerate(REQUESTS))
@pytest.mark.usefixtures("s3_server")
def test_training_ends_in_order_when_signals_come_during_an_upload(number: int, when: tuple[int, float]) -> None:
    (call, pause), request, url = when, "s3fs.core.S3FileSystem._call_s3", "s3://results/run"
    signals = SETS[number % len(SETS)] if pause < 1 else (TERM, INT)
    words = options({**TINY, "training.steps": 12, "run_dir": url})
    code, errors = end_of(words, Moment(request, signals, pause, call))
    names, status = list(folder_at(url).versions()), Run(url).status
    whole = [step_of(name.split("/")[1]) or 0 for name in names if name.endswith("/state.json")]
    if names:  # otherwise it had not begun
        assert status is not None
        assert (status["status"], status["locked"]) == ("stopped" if code else "finished", False)
        assert pause > 1 or max(whole, default=0) == status.get("step", 0)
    if call == REQUESTS[9][0]:  # after the last step there is nothing to be stopped
        assert (code, errors, max(whole)) == (0, "", 12)
    else:
        assert (code, errors.count("\n")) == (128 + signals[-1 if pause > 1 else 0], 1), errors
    assert end_of(words, Moment(request, ())) == (0, "")  # it resumes


def test_a_second_signal_keeps_the_existing_checkpoints(tmp_path: Path) -> None:
    # The second comes while the last checkpoint is being written.
    moment = Moment("dcgan_dist.training.checkpoint.save_tensors", (TERM, TERM), pause=1.1, call=5)
    code, errors = end_of(options({**TINY, "run_dir": tmp_path / "run"}), moment)
    assert (code, errors.count("\n")) == (128 + TERM, 1), errors
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["status"], status["locked"]) == ("stopped", False)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert read_checkpoint(checkpoint).step == 4


@pytest.mark.slow
def test_signals_to_all_processes_of_a_run_do_not_end_those_that_load_its_images(tmp_path: Path) -> None:
    words = options({**TINY, "training.steps": 100_000, "data.workers": 2, "run_dir": tmp_path / "run"})
    with start_training(words, environment()) as running:
        wait_for_line(running.streams[0], "step 5/")
        pid = running.process.pid or 0
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            for number in SIGNALS:
                os.kill(int(child), number)
        wait_for_line(running.streams[0], "step 100/")
        for number in SIGNALS:
            os.killpg(pid, number)
        code, (_, errors) = running.finish(60)
    assert (code - 128 in SIGNALS, errors.count("\n")) == (True, 1), errors
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "stopped"
    assert (tmp_path / f"run/checkpoints/step-{status['step']:08d}/state.json").exists()


# Other commands ------------------------------------------------------------------------------------------------------

ROOMS = ("--source=rooms", "--count=400", "--image-size=16", "--workers=1")
COMMANDS = [
    ("prepare", "dcgan_dist.data.rooms.draw_room", 300, (*ROOMS, "--output=OUT")),
    ("prepare", "dcgan_dist.data.shards.find_finished", 2, (*ROOMS, "--output=OUT")),
    ("report", "dcgan_dist.results.report.write_tables", 1, ("RUN", "--output=OUT/report.html")),
    ("report", "dcgan_dist.results.page.write_atomically", 1, ("RUN", "--output=OUT/report.html")),
    ("compare", "dcgan_dist.compare.make_table", 1, ("RUN",)),
    ("sample", "dcgan_dist.generation.writing.write_samples", 1, ("--run=RUN", "--output=OUT/s.npz")),
]
SLOW_COMMANDS = [
    ("explore", "dcgan_dist.exploration.figure.write_figure", 1, ("walk", "--run=RUN", "--output=OUT")),
    (
        "evaluate",
        "dcgan_dist.evaluation.scoring.add_each",
        1,
        ("--run=RUN", "--task=rooms", "--count=200", "--cs=1e-3"),
    ),
    ("export", "torch.onnx.export", 1, ("--run=RUN", "--output=OUT/s.onnx")),
]


@pytest.mark.parametrize(
    ("number", "what"),
    [
        *enumerate(COMMANDS),
        *(pytest.param(number, what, marks=pytest.mark.slow) for number, what in enumerate(SLOW_COMMANDS)),
    ],
)
def test_commands_end_in_order_whenever_signals_come(
    number: int,
    what: tuple[str, str, int, Sequence[str]],
    tmp_path: Path,
    finished_run: Callable[..., Path],
) -> None:
    command, function, call, words = what
    signals, run_dir = SETS[number % len(SETS)], finished_run(1)
    places = {"RUN": str(run_dir), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    before = sorted(path for path in run_dir.rglob("*") if path.name != ".lock")
    code, errors = end_of(words, Moment(function, signals, call=call), command)
    assert (code, errors.count("\n")) == (128 + signals[0], 1), errors
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix in (".npz", ".html")]
    assert sorted(path for path in run_dir.rglob("*") if path.name != ".lock") == before
