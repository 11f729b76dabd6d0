"""What all front doors share: reading settings, and turning errors into one line and an exit status."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import yaml

from dcgan_dist.config import ALTERNATIVES
from dcgan_dist.errors import ConfigError, DcganDistError, StorageError
from dcgan_dist.parallel import yield_idle_cores
from dcgan_dist.printing import keep_streams, output_failure
from dcgan_dist.settings import (
    Settings,
    build_settings,
    convert,
    describe,
    documentation,
    flatten,
    former,
    kinds_of,
    members,
    modernised,
    override,
    settings_in,
    unknown_setting,
    without_bounds,
)
from dcgan_dist.stopping import Interrupted, final, raising
from dcgan_dist.storage.folder import folder_at
from dcgan_dist.version import __version__

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


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _print_help(settings_class: type[Settings], prog: str, description: str, word_for: str | None) -> None:
    """Print every setting with its docstring, what it admits and its default."""
    known, defaults = settings_in(settings_class), flatten(settings_class())
    word = (
        "" if word_for is None else f"{word_for.upper()} ... " if defaults[word_for] == () else f"[{word_for.upper()}] "
    )
    usage = f"%(prog)s {word}[--config FILE] [--SETTING VALUE ...]"
    parser = argparse.ArgumentParser(prog=prog, description=description, usage=usage, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help message and exit.")
    parser.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    parser.add_argument("--version", action="store_true", help="Print the version and exit.")
    sections: dict[type, Any] = {}
    for name, setting in known.items():
        if setting.group not in sections:
            sections[setting.group] = parser.add_argument_group(_one_line(setting.group.__doc__ or "").rstrip("."))
        default = _word(defaults[name])
        text = f"{documentation(setting.group)[setting.path[-1]]} ({describe(setting.hint)}; default: {default})"
        choices = ["true", "false"] if setting.hint is bool else _choices(setting.hint)
        metavar = f"{{{','.join(map(str, choices))}}}" if choices else setting.path[-1].upper()
        sections[setting.group].add_argument(f"--{name}", metavar=metavar, help=text.replace("%", "%%"))
    parser.print_help()


def _choices(hint: Any) -> list[Any]:
    return [value for kind, _ in members(hint) if Literal in kinds_of(kind) for value in get_args(kind)]


def _word(value: object) -> str:
    """Return a value as it would stand on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_word, value)) or "[]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _by_name(mapping: Mapping[Any, Any], settings_class: type[Settings], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested or dotted names by dotted name, with underscores for hyphens."""
    known, flat = settings_in(settings_class), dict[str, Any]()
    for raw, value in mapping.items():
        key = prefix + str(raw).replace("-", "_")
        is_group = any(name.startswith(f"{key}.") for name in known)
        if is_group and isinstance(value, Mapping | None):  # None: a group with all its lines commented out
            flat.update(_by_name(value or {}, settings_class, f"{key}."))
        elif is_group:
            raise ConfigError(f"{key} is {value!r}: it is a group of settings, such as {key}.NAME: VALUE")
        elif key not in known and key not in former(settings_class, "FORMER_NAMES"):
            raise unknown_setting(key, value, list(known))
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
    if path in configs:
        return configs[path]
    if file.is_dir():
        raise ConfigError(
            f"cannot read the config file {path!r}: it is a folder; give a YAML file, or a run as --run (in Python: "
            f"{{'run': {path!r}}})"
        )
    # By the last part, so that `configs/rooms.yaml` outside of a checkout is near to `rooms`.
    by_last_part = {name.rpartition("/")[2]: name for name in configs}
    near = difflib.get_close_matches(file.name.removesuffix(".yaml"), by_last_part, n=1)
    hint = f"did you mean {by_last_part[near[0]]}? There are" if near else "take a YAML file or one of"
    raise ConfigError(
        f"cannot read the config file {path!r}: no such file, and no config of that name: {hint} "
        f"{', '.join(sorted(configs))}"
    )


def _refuse_twice(text: str, known: Mapping[str, Any], where: str) -> None:
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


def read_yaml_settings(path: str | Path, settings_class: type[Settings]) -> dict[str, Any]:
    """Return the settings of a YAML file, a path or URL, as ``{"optim.lr": 2e-4, ...}``; values are as YAML reads them.

    Settings that an earlier version named otherwise are given by the names that they have now.

    Raises:
        ConfigError: no such file, not YAML, or an unknown key.
    """
    return modernised(settings_class, _read_yaml(path, settings_class)[0])


def _read_yaml(path: str | Path, settings_class: type[Settings]) -> tuple[dict[str, Any], bool]:
    """Return the settings of a YAML file with the names they have there, and whether a run has recorded them."""
    about = f"the config file {str(path)!r}"
    try:
        text = _read_text(str(path))
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, StorageError) as error:
        raise ConfigError(f"cannot read {about}: {_one_line(str(error))}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{about} is not YAML: {_one_line(str(error))}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{about} holds no settings: write them as `optim: {{lr: 2e-4}}`")
    _refuse_twice(text, settings_in(settings_class), about)
    settings = {key: value for key, value in (content or {}).items() if key not in RECORDED_KEYS}
    return _by_name(settings, settings_class), len(settings) < len(content or {})


def _read_arguments(
    arguments: Sequence[str], settings_class: type[Settings], word_for: str | None
) -> tuple[list[str], dict[str, Any]]:
    """Split a command line into config files and values by dotted name; hyphens count as underscores in names."""
    known = settings_in(settings_class)
    files: list[str] = []
    values: dict[str, Any] = {}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word_for is not None and (word == "--" or not word.startswith("-")):
            words += [word] if word != "--" else [rest.pop(0) for _ in list(rest)]
            continue
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected argument {word!r}: settings are given as --name value")
        name, has_value, value = word[2:].partition("=")
        key = name.replace("-", "_")
        hint = known[key].hint if key in known else None
        if not has_value:
            alone = settings_class.ALONE.get(key, "true" if hint is bool else None)
            value = _next_value(name, rest, alone, None if word_for is None else hint)
        if key == "config":
            files.append(value)
        elif hint is None and key not in former(settings_class, "FORMER_NAMES"):
            raise unknown_setting(key, value, list(known))
        else:
            values[key] = value
    if word_for is not None and words:
        values[word_for] = _words(word_for, words, values.get(word_for), tuple in kinds_of(known[word_for].hint))
    return files, values


def _words(key: str, words: list[str], named: str | None, takes_all: bool) -> str | list[str]:
    """Return the value of the setting that is given by words without a name."""
    if len(words) > 1 and not takes_all:
        raise ConfigError(f"unexpected argument {words[1]!r}: {key} is {words[0]!r} already")
    if named is not None:
        raise ConfigError(f"{key} is given twice, as {words[0]!r} and as --{key} {named}: keep one of them")
    return words if takes_all else words[0]


def _next_value(name: str, rest: list[str], alone: str | None, hint: Any) -> str:
    """Take the value of an option from the words behind it.

    One that can stand `alone` takes a word that is of its type, or, where words without a name are refused, any.
    """
    if rest and not rest[0].startswith("--") and (alone is None or hint is None or _can_be(hint, rest[0])):
        return rest.pop(0)
    if alone is None:
        raise ConfigError(f"--{name} needs a value")
    return alone


def _can_be(hint: Any, word: str) -> bool:
    with suppress(ConfigError):
        convert("", word, without_bounds(hint))
        return True
    return False


def print_progress(line: str) -> None:
    """Print a line on the progress to standard error, out of the way of the result."""
    print(line, file=sys.stderr, flush=True)


def parse_settings(
    settings_class: type[Settings],
    arguments: Sequence[str],
    prog: str,
    description: str,
    *,
    word_for: str | None = None,
) -> Settings:
    """Read settings: defaults, then each ``--config FILE``, then ``--key value``, each over the one before.

    A name or value of an earlier version is read with a line on stderr that says what it is now; in silence in a file
    that a run has recorded.

    Args:
        settings_class: what is made.
        arguments: the command line.
        prog: name of the command.
        description: what it does.
        word_for: the setting that can be given without its name: ``run`` for ``sample RUN``.

    Raises:
        ConfigError: unknown key, wrong type, or value out of range; the message names the key and the value.
    """
    if any(word in ("-h", "--help") for word in arguments):
        _print_help(settings_class, prog, description, word_for)
        raise SystemExit(0)
    files, overrides = _read_arguments(arguments, settings_class, word_for)
    for key, value in overrides.items():
        if key in settings_in(settings_class) and dict in kinds_of(settings_in(settings_class)[key].hint):
            with suppress(yaml.YAMLError):  # refused when the settings are built, as no mapping
                _refuse_twice(value, {"": ""}, f"--{key}")
    read = [(file, *_read_yaml(file, settings_class)) for file in files]
    given: dict[str, Any] = {key: value for _, settings, _ in read for key, value in settings.items()} | overrides
    values: dict[str, Any] = {}
    notices: list[str] = []
    for file, settings, is_record in read:
        lines: list[str] = []
        values = _overlay(values, modernised(settings_class, settings, given, lines))
        notices += [] if is_record else [f"{line} (in {file})" for line in lines]
    layer = modernised(settings_class, overrides, given, notices, "--")
    made = override(settings_class(), _overlay(values, layer))
    for line in notices:  # after the checks: what is refused is one line
        print(f"{prog}: {line}", file=sys.stderr, flush=True)
    return made


def _overlay(values: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with those of `layer` over them; a setting given in `layer` ends its alternatives in `values`."""
    ended: set[str] = set()
    for group in ALTERNATIVES:
        given = {key for key in group if layer.get(key) not in (None, "null")}
        if given:
            ended |= set(group) - given
    return {key: value for key, value in values.items() if key not in ended} | layer


def settings_of(
    settings_class: type[Settings],
    config: str | Path | Settings | Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Make settings of what a caller in Python gives.

    Args:
        settings_class: what is made.
        config: a YAML file by path, URL or name; an object of the class; or a mapping of dotted or nested names.
        overrides: settings over those; None clears one.

    Raises:
        ConfigError: no such file, an unknown setting, a wrong type, or a value out of range.
    """
    if isinstance(config, str | Path):
        values = read_yaml_settings(config, settings_class)
    elif isinstance(config, Mapping):
        values = _by_name(config, settings_class)
    elif config is None or isinstance(config, settings_class):
        values = {} if config is None else flatten(config)
    else:
        raise ConfigError(f"settings are {config!r}: give a YAML file, a mapping, or a {settings_class.__name__}")
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(f"overrides are {overrides!r}: give a mapping, such as {{'optim.lr': 1e-3}}")
    return build_settings(settings_class, _overlay(values, _by_name(overrides or {}, settings_class)))


class FrontDoor(ModuleType):
    """A command's module that is a function as well: `dcgan_dist.train(...)` is `dcgan_dist.api.train(...)`.

    The command and the function have one name, and Python puts a module that is imported into its package under it.
    """

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Do what the command does, as a function of `dcgan_dist.api`."""
        api = importlib.import_module("dcgan_dist.api")  # it stands above the commands
        return getattr(api, self.__name__.rpartition(".")[2])(*arguments, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the function."""
        api = importlib.import_module("dcgan_dist.api")
        return inspect.signature(getattr(api, self.__name__.rpartition(".")[2]))


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
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with final(), raising():
            if "--version" in words:
                print(f"dcgan-dist {__version__}")
                prints_result = True
            else:
                command(words)
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
    "parse_settings",
    "print_progress",
    "read_yaml_settings",
    "run",
    "yield_idle_cores",
]
