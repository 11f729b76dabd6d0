"""What all front doors share: reading settings, and turning errors into one line and an exit status."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from dcgan_dist.config import ALTERNATIVES, declared_types, describe_type, unknown_setting
from dcgan_dist.errors import ConfigError, DcganDistError, StorageError
from dcgan_dist.parallel import yield_idle_cores
from dcgan_dist.printing import keep_streams, output_failure
from dcgan_dist.stopping import Interrupted, final, raising
from dcgan_dist.storage.folder import folder_at

Settings = TypeVar("Settings")

# What no check at the start foresees: the disk is full, over quota, broken, read-only, or somebody else's.
_OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
)

# config.yaml of a run also records where it ran; these keys are no settings, so that the file can be given again.
RECORDED_KEYS = ("environment",)

# In a checkout a link to the folder at the top; a wheel has the files.
CONFIGS = Path(__file__).parent / "configs"


_CONFIG_HELP = (
    "YAML file of settings, or the name of one that comes with the package, such as rooms or sweeps/stability; later "
    "files and options override it."
)


class _Parser(ArgumentParser):
    """A parser whose errors are exceptions, not an exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(_one_line(message))


# Kept: one takes an eighth of a second to make, and a sweep makes the settings of hundreds of trials. (Mypy takes the
# class of a type variable for unhashable, hence the two comments where this is called.)
@functools.cache
def _make_parser(
    settings_class: type, prog: str | None = None, description: str | None = None, words: str = ""
) -> _Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"%(prog)s {words}[--config FILE] [--SETTING VALUE ...]"
    parser = _Parser(prog=prog, description=description, usage=usage, exit_on_error=False)
    parser.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    parser.add_class_arguments(settings_class, nested_key=None, as_group=True)
    known = {"help", "config", *declared_types(settings_class)}
    for action in parser._actions:
        # jsonargparse also lists a file option for each group (--model FILE); settings come from --config alone.
        if action.dest not in known:
            action.help = argparse.SUPPRESS
    return parser


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _flatten_mapping(mapping: dict[Any, Any], known: Sequence[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for raw, value in mapping.items():
        key = prefix + str(raw).replace("-", "_")
        is_group = any(name.startswith(f"{key}.") for name in known)
        if is_group and isinstance(value, dict | None):  # None: a group with all its lines commented out
            flat.update(_flatten_mapping(value or {}, known, f"{key}."))
        elif is_group:
            raise ConfigError(f"{key} is {value!r}: it is a group of settings, such as {key}.NAME: VALUE")
        elif key not in known:
            raise unknown_setting(key, value, known)
        else:
            flat[key] = value
    return flat


def _read_text(path: str) -> str:
    if "://" not in path:
        return _config_file(path).read_text(encoding="utf-8")
    folder, _, name = path.rpartition("/")
    content = folder_at(folder, patience=0).get(name)
    if content is None:
        raise FileNotFoundError(f"there is no {path}")
    return content.decode()


def _config_file(path: str) -> Path:
    """Return the file at a path, else the config of that name that comes with the package.

    Raises:
        ConfigError: there is neither; it names the nearest config, and all there are.
    """
    file = Path(path)
    if file.exists() and not file.is_dir():  # a pipe such as /dev/stdin, too
        return file
    configs = {found.relative_to(CONFIGS).with_suffix("").as_posix(): found for found in CONFIGS.rglob("*.yaml")}
    if path in configs or file.is_dir():
        return configs.get(path, file)
    # By the last part, so that `configs/rooms.yaml` outside of a checkout is near to `rooms`.
    by_last_part = {name.rpartition("/")[2]: name for name in configs}
    near = difflib.get_close_matches(file.name.removesuffix(".yaml"), by_last_part, n=1)
    hint = f"did you mean {by_last_part[near[0]]}? There are" if near else "take a YAML file or one of"
    raise ConfigError(
        f"cannot read the config file {path!r}: no such file, and no config of that name: {hint} "
        f"{', '.join(sorted(configs))}"
    )


def _refuse_twice(text: str, known: Mapping[str, str], where: str) -> None:
    """Check that no setting stands twice in a text of YAML, of which the last would win.

    Raises:
        ConfigError: one does; it names both lines.
    """
    lines: dict[str, int] = {}
    seen: set[int] = set()  # aliases stand for the same node many times, or for one that holds them

    def walk(node: yaml.Node | None, group: str) -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            return
        seen.add(id(node))
        for key_node, value_node in node.value:
            name = str(key_node.value)
            # `run-dir` is `run_dir`, but what stands in a setting such as `concept` is no name of a setting.
            key = group + (name.replace("-", "_") if group.removesuffix(".") not in known else name)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(f"{where} has {key} twice, in lines {lines[key]} and {line}: keep one of them")
            lines[key] = line
            walk(value_node, f"{key}.")

    walk(yaml.compose(text, yaml.SafeLoader), "")


def read_yaml_settings(path: str | Path, settings_class: type) -> dict[str, Any]:
    """Return the settings of a YAML file, a path or URL, as ``{"optim.lr": 2e-4, ...}``; values are as YAML reads them.

    Raises:
        ConfigError: no such file, not YAML, or an unknown key.
    """
    try:
        text = _read_text(str(path))
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, StorageError) as error:
        raise ConfigError(f"cannot read the config file {str(path)!r}: {_one_line(str(error))}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the config file {str(path)!r} is not YAML: {_one_line(str(error))}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"the config file {str(path)!r} holds no settings: write them as `optim: {{lr: 2e-4}}`")
    _refuse_twice(text, declared_types(settings_class), f"the config file {str(path)!r}")
    settings = {key: value for key, value in (content or {}).items() if key not in RECORDED_KEYS}
    return _flatten_mapping(settings, list(declared_types(settings_class)))


def _read_arguments(arguments: Sequence[str], types: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into config files and dotted settings; hyphens count as underscores in names."""
    files: list[str] = []
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected argument {word!r}: settings are given as --name value")
        name, has_value, value = word[2:].partition("=")
        key = name.replace("-", "_")
        is_flag = types.get(key) == "bool"
        if not has_value:
            if is_flag and (not rest or rest[0].startswith("--")):
                value = "true"
            elif rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            else:
                raise ConfigError(f"--{name} needs a value")
        if key == "config":
            files.append(value)
        elif key not in types:
            raise unknown_setting(key, value, list(types))
        else:
            values[key] = value
    return files, values


def split_words(arguments: Sequence[str], optional: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Split a command line into the words that belong to no setting, and the settings for `parse_settings`.

    Args:
        arguments: the command line; after `--` all are words.
        optional: settings that can be given without a number, and the one that is meant then.
    """
    words: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return words + rest, settings
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        settings.append(word)
        name, has_value, _ = word.removeprefix("--").partition("=")
        if has_value or word in ("-h", "--help"):
            continue
        if name in optional and not (rest and _is_number(rest[0])):
            settings.append(optional[name])
        elif rest and not rest[0].startswith("--"):
            settings.append(rest.pop(0))
    return words, settings


def need_places(words: Sequence[str]) -> list[str]:
    """Return the directories and URLs given.

    Raises:
        ConfigError: there are none.
    """
    if not words:
        raise ConfigError("no directory given: name those with runs and sweeps, such as `runs` or `s3://bucket/runs`")
    return list(words)


def print_progress(line: str) -> None:
    """Print a line on the progress to standard error, out of the way of the result."""
    print(line, file=sys.stderr, flush=True)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def parse_settings(
    settings_class: type[Settings], arguments: Sequence[str], prog: str, description: str, words: str = ""
) -> Settings:
    """Read settings: defaults, then each ``--config FILE``, then ``--key value``, each over the one before.

    `words` is what the usage shows for arguments that are no settings, such as ``DIR ... ``.

    Raises:
        ConfigError: unknown key, wrong type, or value out of range; the message names the key and the value.
    """
    if any(word in ("-h", "--help") for word in arguments):
        _make_parser(settings_class, prog, description, words).print_help()  # type: ignore[arg-type]
        raise SystemExit(0)
    types = declared_types(settings_class)
    files, overrides = _read_arguments(arguments, types)
    for key in (key for key in overrides if types[key].startswith("dict")):
        with suppress(yaml.YAMLError):  # refused when the settings are built, as no mapping
            _refuse_twice(overrides[key], {"": ""}, f"--{key}")
    values: dict[str, Any] = {}
    for layer in [*(read_yaml_settings(file, settings_class) for file in files), overrides]:
        values = _overlay(values, layer)
    return build_settings(settings_class, values)


def _overlay(values: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with those of `layer` over them; a setting given in `layer` ends its alternatives in `values`."""
    ended: set[str] = set()
    for group in ALTERNATIVES:
        given = {key for key in group if layer.get(key) not in (None, "null")}
        if given:
            ended |= set(group) - given
    return {key: value for key, value in values.items() if key not in ended} | layer


def build_settings(settings_class: type[Settings], values: dict[str, Any]) -> Settings:
    """Make settings from dotted values, coercing each to its declared type (``"2e-4"`` becomes a float).

    Raises:
        ConfigError: unknown key, wrong type, or value out of range.
    """
    types = declared_types(settings_class)
    for key, value in values.items():
        if key not in types:
            raise unknown_setting(key, value, list(types))
        if value is None and "None" not in str(types[key]):
            raise ConfigError(f"{key} is null: expected {describe_type(types[key])}")
    parser = _make_parser(settings_class)  # type: ignore[arg-type]
    words = {key: f"--{key}={_word(value)}" for key, value in values.items()}
    try:
        parsed = parser.parse_args(list(words.values()))
    except ConfigError as error:
        for key, word in words.items():
            if not _is_accepted(parser, word):
                raise ConfigError(f"{key} is {values[key]!r}: expected {describe_type(types[key])}") from error
        raise
    made = parser.instantiate(parsed)
    return settings_class(**{entry.name: made[entry.name] for entry in dataclasses.fields(settings_class)})  # type: ignore[arg-type]


def _word(value: object) -> str:
    """Write a value as it would stand on the command line."""
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _is_accepted(parser: _Parser, word: str) -> bool:
    try:
        parser.parse_args([word])
    except ConfigError:
        return False
    return True


def run(
    command: Callable[[Sequence[str]], None],
    prog: str,
    arguments: Sequence[str] | None = None,
    *,
    after_signal: str = "",
    prints_result: bool = False,
) -> int:
    """Run a front door and return its exit status; signals and errors made on purpose become one line on stderr.

    Args:
        command: does the work.
        prog: name of the command.
        arguments: left out, those of the process.
        after_signal: what one that a signal ended has left, and what to do next.
        prints_result: whether what it prints is all that it makes: a failure to print it is then one of the command.
    """
    keep_streams()
    try:
        with final(), raising():
            command(sys.argv[1:] if arguments is None else arguments)
    except DcganDistError as error:
        print(f"{prog}: {_one_line(str(error))}{error.says_more}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        about = f" ({error.filename})" if error.filename else ""
        print(f"{prog}: {_one_line(error.strerror or str(error))}{about}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if not isinstance(stop, Interrupted):
            stop = Interrupted(signal.SIGINT)
        print(f"{prog}: {stop}" + (f"; {after_signal}" if after_signal else ""), file=sys.stderr)
        return 128 + stop.number
    except SystemExit:  # after --help
        prints_result = True
        if not output_failure():
            raise
    if prints_result and (reason := output_failure()):
        print(f"{prog}: standard output cannot be written: {reason}", file=sys.stderr)
        return 1
    return 0


__all__ = [
    "build_settings",
    "need_places",
    "parse_settings",
    "print_progress",
    "read_yaml_settings",
    "run",
    "split_words",
    "yield_idle_cores",
]
