"""How settings are given: YAML under the command line, what `--help` says, and one clear line for each mistake."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcgan_dist import __version__
from dcgan_dist.__main__ import FRONT_DOORS
from dcgan_dist.command_line import build_settings, parse_settings, run
from dcgan_dist.config import Config, flatten
from dcgan_dist.data.settings import PrepareConfig
from dcgan_dist.doctor import DoctorConfig
from dcgan_dist.errors import ConfigError, Diverged, Stopped
from dcgan_dist.evaluation.settings import EvaluateConfig
from dcgan_dist.exploration.catalogue import FIGURES
from dcgan_dist.exploration.figure import AllConfig
from dcgan_dist.generation.settings import ExportConfig, SampleConfig
from dcgan_dist.results.settings import CompareConfig, ReportConfig
from dcgan_dist.settings import describe, documentation, former, override, settings_in
from dcgan_dist.sweeps.settings import SweepConfig

CLASSES = [
    *(Config, PrepareConfig, SampleConfig, ExportConfig, EvaluateConfig, SweepConfig, ReportConfig, CompareConfig),
    *(DoctorConfig, AllConfig, *(figure.settings for figure in FIGURES.values())),
]


def settings(*arguments: str) -> Config:
    return parse_settings(Config, arguments, "dcgan-dist test", "Test.")


def given(*arguments: str) -> dict[str, object]:
    """Return the settings that differ from the defaults."""
    before = flatten(Config())
    return {key: value for key, value in flatten(settings(*arguments)).items() if value != before[key]}


def mistake(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def to_file(text: str, name: str = "settings.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return to_file


def test_without_arguments_all_settings_are_the_defaults() -> None:
    assert settings() == Config()


def test_the_command_line_overrides_later_files_and_these_earlier_ones(write: Callable[..., str]) -> None:
    first = write("seed: 1\noptim: {lr: 1e-3, beta1: 0.1}\nmodel:\n  ngf: 8\n", "first.yaml")
    second = write("optim:\n  lr: 3e-4\n", "second.yaml")
    assert given("--config", first) == {"seed": 1, "optim.lr": 1e-3, "optim.beta1": 0.1, "model.ngf": 8}
    expected = {"seed": 1, "optim.lr": 3e-4, "optim.beta1": 0.7, "model.ngf": 8}
    assert given("--optim.beta1", "0.7", f"--config={first}", "--config", second) == expected


def test_scientific_notation_that_yaml_reads_as_text_is_a_number(write: Callable[..., str]) -> None:
    text = "optim:\n  lr: 3e-4\n  eps: 1e-7\n"
    assert yaml.safe_load(text)["optim"]["lr"] == "3e-4"
    config = settings("--config", write(text))
    assert (config.optim.lr, config.optim.eps) == (3e-4, 1e-7)
    assert isinstance(config.optim.lr, float)


@pytest.mark.parametrize("option", ["--run-dir", "--run_dir"])
def test_a_hyphen_and_an_underscore_mean_the_same_in_names(option: str, write: Callable[..., str]) -> None:
    assert given(option, "my-run_1") == {"run_dir": "my-run_1"}
    assert given(f"{option}=my-run_1") == {"run_dir": "my-run_1"}
    assert given("--training.batch-size", "64") == {"training.batch_size": 64}
    assert given("--config", write("run-dir: my-run_1\n")) == {"run_dir": "my-run_1"}


def test_values_keep_their_text_and_take_their_declared_type() -> None:
    assert given("--name", "1e3", "--data.path", "12:30:45", "--run_dir", "007") == {
        "name": "1e3",
        "data.path": "12:30:45",
        "run_dir": "007",
    }
    assert given("--data.path", "s3://bucket/a=b,c") == {"data.path": "s3://bucket/a=b,c"}
    assert given("--model.batch_norm", "none", "--model.channels", "3") == {
        "model.batch_norm": "none",
        "model.channels": 3,
    }
    assert given("--model.slope", "-0.1") == {"model.slope": -0.1}
    assert given("--training.epochs", "2") == {"training.epochs": 2.0}


def test_a_switch_may_stand_without_a_value() -> None:
    on = {"training.compile": True, "seed": 3}
    assert given("--training.compile", "--seed", "3") == given("--seed", "3", "--training.compile") == on
    assert given("--training.compile", "true", "--seed=3") == on
    assert given("--training.channels_last", "false") == {"training.channels_last": False}
    prepared = parse_settings(PrepareConfig, ["--grey", "--source", "mnist"], "test", "")
    assert (prepared.grey, prepared.source) == (True, "mnist")


def test_one_of_epochs_and_steps_given_later_replaces_the_other(write: Callable[..., str]) -> None:
    epochs, steps = write("training: {epochs: 5}\n", "epochs.yaml"), write("training: {steps: 70}\n", "steps.yaml")
    assert given("--config", epochs) == {"training.epochs": 5}
    assert given("--config", epochs, "--training.steps", "20") == {"training.steps": 20}
    assert given("--config", steps, "--training.epochs", "0.5") == {"training.epochs": 0.5}
    assert given("--config", steps, "--config", epochs) == {"training.epochs": 5}
    assert given("--config", steps, "--training.epochs", "null") == {"training.steps": 70}


def test_both_epochs_and_steps_in_one_place_are_refused(write: Callable[..., str]) -> None:
    assert "training.epochs is 5.0 and" in mistake("--training.epochs", "5", "--training.steps", "70")
    assert "training.epochs is 5.0 and" in mistake("--config", write("training: {epochs: 5, steps: 70}\n"))


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("optim.learnrate", "optim.lr"),
        ("lr", "optim.lr"),
        ("batch_size", "training.batch_size"),
        ("model.batch_size", "training.batch_size"),
        ("training.epoch", "training.epochs"),
        ("modle.ngf", "model.ngf"),
        ("data.on-damages", "data.on_damage"),
    ],
)
def test_an_unknown_key_is_named_with_its_value_and_the_nearest_key(
    unknown: str, nearest: str, write: Callable[..., str]
) -> None:
    name = unknown.replace("-", "_")
    expected = f"unknown setting {name} (value '17'); did you mean {nearest}?"
    assert mistake(f"--{unknown}", "17") == expected
    assert mistake("--config", write(f'"{unknown}": "17"\n')) == expected


def test_an_unknown_key_like_no_other_points_to_help() -> None:
    assert mistake("--xyzzy", "1") == "unknown setting xyzzy (value '1'); --help lists all settings"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "many", "a whole number from 0 to 4,294,967,295"),
        ("training.batch_size", "64.5", "a whole number from 1 to 131,072"),
        ("optim.lr", "fast", "a number in (0, 1e+30]"),
        ("training.compile", "perhaps", "true or false"),
        ("training.precision", "fp16", "one of fp32, bf16, fp64"),
        ("model.channels", "2", "one of 1, 3 or null"),
        ("training.steps", "1.5", "a whole number from 1 to 1,000,000,000,000 or null"),
    ],
)
def test_a_wrong_type_is_refused_saying_what_is_expected(
    key: str, value: str, expected: str, write: Callable[..., str]
) -> None:
    message = f"{key} is {value!r}: expected {expected}"
    assert mistake(f"--{key}", value) == message
    group, _, name = key.rpartition(".")
    text = f"{group}: {{{name}: '{value}'}}\n" if group else f"{name}: '{value}'\n"
    assert mistake("--config", write(text)) == message


def test_null_is_refused_where_a_value_is_needed(write: Callable[..., str]) -> None:
    assert mistake("--config", write("name: null\n")) == "name is null: expected a plain file name"
    assert settings("--config", write("model:\n  image_size: null\n")).model.image_size is None


def test_a_value_out_of_range_is_refused() -> None:
    assert mistake("--optim.lr", "-1") == "optim.lr is -1.0: expected a number in (0, 1e+30]"
    assert mistake("--model.image_size", "48").startswith("model.image_size is 48: expected one of 16, 28,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rooms.yaml"], "unexpected argument 'rooms.yaml'"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "--name", "x"], "--seed needs a value"),
        (["--config", "absent.yaml"], "cannot read the config file 'absent.yaml'"),
        (["--model", "x.yaml"], "unknown setting model"),
        (["--config", "."], "cannot read the config file '.'"),
    ],
)
def test_a_malformed_command_line_is_refused(arguments: Sequence[str], message: str) -> None:
    assert message in mistake(*arguments)


def test_a_config_that_comes_with_the_package_is_taken_by_its_name_where_no_file_has_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings("--config", "faces").name == "faces"
    assert parse_settings(SweepConfig, ["--config", "sweeps/stability"], "test", "").name == "stability"
    (tmp_path / "faces").mkdir()  # a folder is no file
    assert settings("--config", "faces").name == "faces"
    (tmp_path / "rooms").write_text("name: mine\n")
    assert settings("--config", "rooms").name == "mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("romms", "did you mean rooms? There are faces, "),
        ("configs/rooms.yaml", "did you mean rooms? There are faces, "),
        ("stabilty", "did you mean sweeps/stability? There are faces, "),
        ("../configs/rooms", "did you mean rooms?"),
        ("nothing-like-it", "take a YAML file or one of faces, "),
    ],
)
def test_an_unknown_config_is_refused_with_the_nearest_and_all_there_are(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = mistake("--config", name)
    assert message.startswith(f"cannot read the config file {name!r}: no such file, and no config of that name: {hint}")
    assert message.endswith(", rooms, svhn, sweeps/capacity, sweeps/paper-ablations, sweeps/stability, tutorial64")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: [1, 2", "is not YAML"),
        ("- seed\n", "holds no settings"),
        ("just text\n", "holds no settings"),
        ("optim: 3\n", "optim is 3: it is a group of settings"),
        ("seed: [1]\n", "seed is [1]: expected a whole number"),
        ("optim:\n  lr:\n    x: 1\n", "optim.lr is {'x': 1}: expected a number"),
        ("!!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str, write: Callable[..., str]) -> None:
    assert message in mistake("--config", write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "has seed twice, in lines 1 and 3: keep one of them"),
        ("optim:\n  lr: 1\n  lr: 1\n", "has optim.lr twice, in lines 2 and 3"),
        ("optim: {lr: 1}\noptim: {beta1: 0.1}\n", "has optim twice, in lines 1 and 2"),
        ("optim: {lr: 1}\noptim.lr: 2\n", "has optim.lr twice, in lines 1 and 2"),
        ("run-dir: a\nrun_dir: b\n", "has run_dir twice, in lines 1 and 2"),
        ("{seed: 1, seed: 1}\n", "has seed twice, in lines 1 and 1"),
        ("environment: {a: 1, a: 2}\n", "has environment.a twice"),
    ],
)
def test_a_setting_that_stands_twice_is_refused_with_both_lines(
    text: str, message: str, write: Callable[..., str]
) -> None:
    assert message in mistake("--config", write(text))


def test_a_key_that_stands_twice_in_a_space_is_refused(write: Callable[..., str]) -> None:
    space = "{optim.lr: {choice: [1]}, optim.lr: {choice: [2]}}"
    for words in (["--config", write(f"space: {space}\n")], ["--space", space]):
        with pytest.raises(ConfigError, match=r"has (space\.)?optim\.lr twice, in lines 1 and 1"):
            parse_settings(SweepConfig, words, "sweep", "")


def test_aliases_are_no_settings_that_stand_twice(write: Callable[..., str]) -> None:
    assert given("--config", write("model: &m {ngf: 4}\n")) == {"model.ngf": 4}
    assert given("--config", write("optim: {lr: &n 1}\nmodel: {slope: *n}\n")) == {"optim.lr": 1, "model.slope": 1}


def test_empty_files_and_groups_and_the_record_of_where_a_run_ran_are_admitted(write: Callable[..., str]) -> None:
    assert given("--config", write("")) == {}
    assert given("--config", write("optim:\n  # lr: 1\nseed: 2\nenvironment: {torch: '2'}\n")) == {"seed": 2}


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("settings_class", [Config, PrepareConfig])
def test_help_lists_every_setting_with_its_meaning_type_and_default(
    settings_class: type, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parse_settings(settings_class, [option], "dcgan-dist test", "Test.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    entries = {words.split()[0]: " ".join(words.split()) for words in re.split(r"\n(?=  -|\S)", text) if "--" in words}
    for key in settings_in(settings_class):
        entry = entries[f"--{key}"]
        found = re.fullmatch(r"--\S+ (\{.*?\}|[A-Z0-9_]+) (\S.*\.) \((.+); default: (.+)\)", entry)
        assert found is not None, entry
        assert len(found[2]) > 15, entry
        assert found[3] == describe(settings_in(settings_class)[key].hint), entry
        assert override(settings_class(), {key: found[4]}) == settings_class(), "the default is as one would write it"
    assert entries.keys() == {
        "usage:",
        "-h,",
        "--config",
        "--version",
        *(f"--{key}" for key in settings_in(settings_class)),
    }


@pytest.mark.parametrize("settings_class", CLASSES, ids=lambda each: each.__name__)
def test_every_setting_and_group_has_a_docstring(settings_class: type) -> None:
    for key, setting in settings_in(settings_class).items():
        assert len(documentation(setting.group)[setting.path[-1]]) > 15, key
        assert setting.group.__doc__
        assert not setting.group.__doc__.startswith(f"{setting.group.__name__}("), "the dataclass's own"


def test_run_turns_errors_into_one_line_and_their_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: Sequence[str]) -> None:
        match arguments[0]:
            case "parse":
                settings(*arguments[1:])
            case "diverge":
                raise Diverged("the loss of D\nis nan at step 7")
            case "stop":
                raise Stopped(15, "stopped at step 9")
            case "interrupt":
                raise KeyboardInterrupt

    for arguments, status, line in [
        (["parse", "--seed", "1"], 0, ""),
        (["parse", "--sede", "1"], 2, "x: unknown setting sede (value '1'); did you mean seed?\n"),
        (["diverge"], 3, "x: the loss of D is nan at step 7\n"),
        (["stop"], 143, "x: stopped at step 9\n"),
        (["interrupt"], 130, "x: interrupted\n"),
    ]:
        assert run(command, "x", arguments) == status
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", line)


def test_a_front_door_ends_with_status_2_and_one_line_for_an_unknown_key() -> None:
    command = [sys.executable, "-m", "dcgan_dist.train", "--optim.lrr", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "unknown setting optim.lrr (value '1'); did you mean optim.lr?" in done.stderr


@pytest.mark.parametrize("is_nobody", [False, True])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ("--run-dir=HOME/run", "--data.path=rooms:256")),
        ("train", ("--run-dir=run", "--data.path=HOME/shards")),
        ("train", ("--run-dir=run", "--data.path=HOME/{0..3}.tar")),
        ("prepare", ("--source=folder", "--input=HOME/images", "--output=out")),
        ("prepare", ("--source=rooms", "--count=1", "--image-size=16", "--output=HOME/out")),
        ("sample", ("--run=HOME/run", "--output=out.png")),
        ("evaluate", ("--run=HOME/run", "--task=rooms")),
        ("export", ("--run=HOME/run", "--output=out.onnx")),
        ("explore", ("walk", "--run=HOME/run")),
        ("report", ("HOME/runs", "--output=report.html")),
        ("report", (".", "--output=HOME/report.html")),
        ("compare", ("HOME/runs",)),
        ("sweep", ("--sweep-dir=HOME/sweep", "--space={optim.lr: {grid: [1e-4, 1e-3]}}")),
    ],
)
def test_a_home_folder_that_is_not_known_is_one_line(
    command: str,
    words: Sequence[str],
    is_nobody: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    home = "~no-such-user"
    if is_nobody:
        home = "~"
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 54321)  # one without an entry in /etc/passwd
    words = [word.replace("HOME", home) for word in words]
    assert importlib.import_module(f"dcgan_dist.{command}").main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"'{home}/" in error
    assert "begins with a home folder that is not known: set HOME" in error
    assert not list(tmp_path.iterdir())


# A run by its position


READERS = [SampleConfig, ExportConfig, EvaluateConfig, AllConfig, *(figure.settings for figure in FIGURES.values())]


def read(settings_class: type, *arguments: str) -> Any:
    return parse_settings(settings_class, arguments, "dcgan-dist test", "Test.", word_for="run")


@pytest.mark.parametrize("settings_class", READERS, ids=lambda each: each.__name__)
def test_a_run_that_is_read_is_given_by_its_position_or_its_name(settings_class: type) -> None:
    expected = settings_class(run="runs/rooms", step="20")
    assert read(settings_class, "runs/rooms", "--step", "20") == expected
    assert read(settings_class, "--step=20", "runs/rooms") == expected
    assert read(settings_class, "--run", "runs/rooms", "--step=20") == expected


def test_a_switch_before_the_run_keeps_its_own_value_alone() -> None:
    for words in (("--overwrite", "runs/rooms"), ("--overwrite", "true", "runs/rooms"), ("runs/rooms", "--overwrite")):
        assert read(SampleConfig, *words) == SampleConfig(run="runs/rooms", overwrite=True)
    assert read(SampleConfig, "--overwrite", "false", "runs/rooms") == SampleConfig(run="runs/rooms")


def test_a_run_on_the_command_line_replaces_that_of_a_file(write: Callable[..., str]) -> None:
    assert read(SampleConfig, "--config", write("run: a\ncount: 3\n"), "b") == SampleConfig(run="b", count=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--run", "b"], "run is given twice, as 'a' and as --run b: keep one of them"),
        (["--run=a", "a"], "run is given twice, as 'a' and as --run a: keep one of them"),
        (["a", "b"], "unexpected argument 'b': run is 'a' already"),
        (["a", "-v"], "unexpected argument '-v': settings are given as --name value"),
        (["--run-dir", "a"], "unknown setting run_dir (value 'a'); did you mean run?"),
    ],
)
def test_more_than_one_run_is_refused(arguments: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(SampleConfig, *arguments)
    assert str(caught.value) == message


# Lists


@pytest.mark.parametrize(
    ("settings_class", "key", "text", "value"),
    [
        (EvaluateConfig, "cs", "1e-4, 0.5,2", (1e-4, 0.5, 2.0)),
        (EvaluateConfig, "cs", "1e-3", (1e-3,)),
        (EvaluateConfig, "baselines", "random,pixels", ("random", "pixels")),
        (PrepareConfig, "only", "cat,dog house,3", ("cat", "dog house", "3")),
        (FIGURES["filters"].settings, "filters", "0-5,17", ("0-5", "17")),
        (FIGURES["arithmetic"].settings, "measured", "1,3", (1, 3)),
        (Config, "model.generator_units", "1200,1200", (1200, 1200)),
        (SweepConfig, "objective", "representation:1,coverage:0.5", ("representation:1", "coverage:0.5")),
    ],
)
def test_a_list_is_written_with_commas_or_as_yaml_has_it(
    settings_class: type, key: str, text: str, value: object, write: Callable[..., str]
) -> None:
    items = [item.strip() for item in text.split(",")]
    nested = key.replace(".", ":\n  ")
    quoted = ", ".join(f"'{item}'" for item in items)
    for words in (
        [f"--{key}", text],
        [f"--{key}=[{text}]"],
        [f"--{key}", f"[{quoted}]"],
        ["--config", write(f"{nested}: '{text}'\n")],
        ["--config", write(f"{nested}: [{quoted}]\n")],
        *([["--config", write(f"{nested}: [{text}]\n")]] if ":" not in text else []),
    ):
        assert flatten(parse_settings(settings_class, words, "test", ""))[key] == value, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cs=a,1"], "cs is 'a,1': expected a list of positive numbers, such as 1e-3,1e-2"),
        (["--cs=1e-3,"], "cs is '1e-3,': expected a list of positive numbers, such as 1e-3,1e-2"),
        (["--cs="], "cs is '': expected a list of positive numbers, such as 1e-3,1e-2"),
        (["--cs=1,-2"], "cs is '1,-2': expected a list of positive numbers, such as 1e-3,1e-2"),
        (
            ["--baselines=random,tarot"],
            "baselines is 'random,tarot': expected a list such as a,b or [a, b], each one of r",
        ),
        (
            ["--baselines=random,all"],
            "baselines is 'random,all': take some of random, pixels, knn, kmeans, cnn, or all",
        ),
    ],
)
def test_a_list_with_something_else_in_it_is_refused(words: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_settings(EvaluateConfig, words, "test", "")


def test_a_list_of_lists_or_null_is_refused(write: Callable[..., str]) -> None:
    for text in ("cs: [[1]]\n", "cs: {a: 1}\n", "cs: [null]\n"):
        with pytest.raises(ConfigError, match=r"cs is .*: expected a list of positive numbers"):
            parse_settings(EvaluateConfig, ["--config", write(text)], "test", "")


# Names and values of earlier versions


BOXES, WINDOWS, FILTERS, NEIGHBOURS = (FIGURES[name].settings for name in ("boxes", "windows", "filters", "neighbours"))
FORMER = [
    (EvaluateConfig, "images 500", "count 500"),
    (EvaluateConfig, "samples 500", "count 500"),
    (SweepConfig, "score.images 500", "score.data_count 500"),
    (SweepConfig, "score.samples 500", "score.count 500"),
    (SweepConfig, "workers_per_trial 2", "cluster.workers 2"),
    (PrepareConfig, "deduplication.images 500", "deduplication.count 500"),
    (PrepareConfig, "cluster.workers 0", "cluster.workers 1"),
    (SampleConfig, "cluster.workers 0", "cluster.workers 1"),
    (EvaluateConfig, "cluster.workers 0", "cluster.workers 1"),
    (BOXES, "samples 50", "count 50"),
    (WINDOWS, "samples 50", "search 50"),
    (FILTERS, "images 50", "count 50"),
    (NEIGHBOURS, "images 50", "data_count 50"),
    *(
        (settings_class, f"model.sample_statistics {then}", f"model.sample_statistics {now}")
        for settings_class in (Config, SweepConfig, DoctorConfig)
        for then, now in (("paper", "running"), ("released", "batch"))
    ),
]


def test_every_name_and_value_of_an_earlier_version_is_tried_here() -> None:
    declared = {
        (settings_class, name)
        for settings_class in CLASSES
        for table in ("FORMER_NAMES", "FORMER_VALUES")
        for name in former(settings_class, table)
    }
    assert declared == {(settings_class, then.split()[0]) for settings_class, then, _ in FORMER}


def test_the_page_on_settings_names_all_of_them() -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    table = page[page.index("| command | before | now |") :].replace("-", "_")
    for _, then, now in FORMER:
        for name in (then.split()[0], now.split()[0]):
            assert re.search(rf"[`_]{re.escape(name)}\b", table), name


@pytest.mark.parametrize(("settings_class", "then", "now"), FORMER)
def test_what_an_earlier_version_wrote_is_read_with_a_line_that_says_what_it_is_now(
    settings_class: type, then: str, now: str, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    (old, value), (new, value_now) = then.split(), now.split()
    expected = parse_settings(settings_class, [f"--{new}", value_now], "test", "")
    assert capsys.readouterr().err == ""
    line = f"{old} is now {{}}{new}" if value == value_now else f"{old} {value} is now {{}}{new} {value_now}"
    assert parse_settings(settings_class, [f"--{old.replace('_', '-')}", value], "test", "") == expected
    assert capsys.readouterr().err == f"test: --{line.format('--')}\n"
    group, _, name = old.rpartition(".")
    text = f"{group}:\n  {name}: {value}\n" if group else f"{name}: {value}\n"
    path = write(text)
    assert parse_settings(settings_class, ["--config", path], "test", "") == expected
    assert capsys.readouterr().err == f"test: {line.format('')} (in {path})\n"
    assert build_settings(settings_class, {old: value}) == expected
    # What a run has recorded is read in silence.
    assert parse_settings(settings_class, ["--config", write(f"{text}environment: {{}}\n")], "test", "") == expected
    assert capsys.readouterr().err == ""


def test_what_is_refused_is_one_line_by_a_former_name_too(capsys: pytest.CaptureFixture[str]) -> None:
    def command(arguments: Sequence[str]) -> None:
        parse_settings(EvaluateConfig, arguments, "x", "")

    assert run(command, "x", ["--samples=0"]) == 2
    assert capsys.readouterr().err == "x: count is 0: expected a whole number from 1 to 1,000,000,000 or null\n"


def test_a_former_name_on_the_command_line_goes_over_the_new_one_in_a_file(write: Callable[..., str]) -> None:
    words = ["--config", write("count: 3\n"), "--samples", "4"]
    assert parse_settings(EvaluateConfig, words, "test", "").count == 4
    words = ["--config", write("samples: 3\n"), "--count", "4"]
    assert parse_settings(EvaluateConfig, words, "test", "").count == 4


def test_one_nn_has_two_numbers_of_images_and_other_tasks_one(write: Callable[..., str]) -> None:
    words = ["--config", write("task: one-nn\nsamples: 30\n"), "--images", "20"]
    expected = EvaluateConfig(task="one-nn", count=30, data_count=20)
    assert parse_settings(EvaluateConfig, words, "test", "") == expected
    with pytest.raises(ConfigError, match="data_count is 20: it is for the task one-nn; rooms has count"):
        parse_settings(EvaluateConfig, ["--data-count", "20"], "test", "")


def test_a_setting_by_two_of_its_names_at_once_is_refused() -> None:
    for words, message in (
        (["--images=3", "--samples=3"], "--images and --samples are both given, and are one setting now: give --count"),
        (["--count=3", "--images=3"], "--count and --images are both given, and are one setting now: give --count"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_settings(EvaluateConfig, words, "test", "")


# The version


@pytest.mark.parametrize("name", FRONT_DOORS)
def test_every_front_door_tells_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"dcgan_dist.{name}").main
    for words in (["--version"], ["walk", "--version"] if name == "explore" else ["--version", "--help"]):
        assert main(words) == 0
        assert capsys.readouterr() == (f"dcgan-dist {__version__}\n", "")


def test_the_command_of_all_tells_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dcgan_dist", "--version"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dcgan-dist {__version__}\n", "")
