"""Settings: frozen dataclasses, and the one way from a value as people write it to a checked one of the declared type.

::

    YAML, words, mappings, a sweep's values    {"optim.lr": "1e-3"}
      -> modernised()                          names and values of earlier versions replaced
      -> override()                            by dotted name into a tree of groups
      -> Group.__post_init__() -> convert()    each value by the type and the bounds declared at its field

Groups that are made in Python take the last step too.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import difflib
import functools
import inspect
import itertools
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from dcgan_dist.errors import ConfigError

# Names and values that settings had in earlier versions, declared in the class of the settings. They are still read:
# command lines and YAML files with a line that says what to write now, records of runs and sweeps in silence.
# A new name is dotted, or a function of all settings given that returns one.
FormerNames = Mapping[str, str | Callable[[Mapping[str, Any]], str]]
FormerValues = Mapping[str, Mapping[str, Any]]

# Metadata of a field that holds a group: its settings have no prefix, and those of the class itself replace them.
INLINE = {"inline": True}

_IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Base of all classes of settings: converts and checks each value by the declared type of its field."""

    FORMER_NAMES: ClassVar[FormerNames] = {}
    FORMER_VALUES: ClassVar[FormerValues] = {}
    ALONE: ClassVar[Mapping[str, str]] = {}  # what an option without a value stands for
    PREFIX: ClassVar[str] = ""  # of its names in messages

    def __init_subclass__(cls, prefix: str = "") -> None:
        cls.PREFIX = prefix

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, convert(self.PREFIX + name, getattr(self, name), hint))


Settings = TypeVar("Settings", bound=Group)
Function = TypeVar("Function", bound=Callable[..., Any])


def _cached(function: Function) -> Function:
    return functools.cache(function)  # type: ignore[return-value]  # mypy takes frozen dataclasses for unhashable


def require(settings: Group, condition: bool, name: str, way_out: str) -> None:
    """Refuse the value of a setting with a message that ends in `way_out`, unless the condition holds.

    Raises:
        ConfigError: it does not.
    """
    if not condition:
        raise ConfigError(f"{settings.PREFIX}{name} is {as_text(getattr(settings, name))!r}: {way_out}")


def like(pattern: str, expected: str) -> Meta:
    """Return the bounds of a text: what all of it matches, and what a refusal says that this is."""
    return Meta(pattern=rf"^(?:{pattern})(?![\s\S])", extra={"expected": expected})


class Setting(NamedTuple):
    """Where a setting is: the fields that lead to it, the class that declares it, and its declared type."""

    path: tuple[str, ...]
    group: type[Group]
    hint: Any


@_cached
def hints_of(group: type[Group]) -> dict[str, Any]:
    """Return the declared type of each field of a class."""
    hints = get_type_hints(group, include_extras=True)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(group)}


@_cached
def settings_in(group: type[Group]) -> dict[str, Setting]:
    """Return all settings of a class and of the groups in it by dotted name, in the order of declaration."""
    inlined: dict[str, Setting] = {}
    own: dict[str, Setting] = {}
    for entry in dataclasses.fields(group):
        name, hint = entry.name, hints_of(group)[entry.name]
        if not _is_group(hint):
            own[name] = Setting((name,), group, hint)
            continue
        prefix = "" if entry.metadata.get("inline") else f"{name}."
        found = {prefix + key: inner._replace(path=(name, *inner.path)) for key, inner in settings_in(hint).items()}
        (own if prefix else inlined).update(found)
    return inlined | own


@_cached
def documentation(group: type[Group]) -> dict[str, str]:
    """Return the docstring under each field of a class."""
    texts: dict[str, str] = {}
    for base in reversed(group.__mro__[: group.__mro__.index(Group)]):
        module = ast.parse(inspect.getsource(inspect.getmodule(base) or base))
        (body,) = (node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == base.__name__)
        for entry, text in itertools.pairwise(body):
            if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(entry.target)] = " ".join(str(text.value.value).split())
    return texts


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Group)


def members(hint: Any) -> list[tuple[Any, Meta]]:
    """Return the types that a declared type is a union of, each with its bounds."""
    if get_origin(hint) is Annotated:
        return [(kind, hint.__metadata__[0]) for kind, _ in members(hint.__origin__)]
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in members(part)]
    return [(hint, Meta())]


def kinds_of(hint: Any) -> list[Any]:
    """Return the classes that values of a declared type have; `Literal` where they are certain ones."""
    return [get_origin(kind) or kind for kind, _ in members(hint)]


def describe(hint: Any) -> str:
    """Say in words what a declared type admits."""
    return " or ".join(_describe(kind, bounds) for kind, bounds in members(hint))


def _describe(kind: Any, bounds: Meta) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if bounds.extra:
        words = str(bounds.extra["expected"])
    elif origin is Literal:
        words = "one of " + ", ".join(map(str, inner))
    elif origin is dict:
        words = "a mapping such as {optim.lr: {loguniform: [1e-5, 1e-2]}}"
    elif origin is tuple:
        example = "1,2 or [1, 2]" if {int, float} & set(kinds_of(inner[0])) else "a,b or [a, b]"
        words = f"a list such as {example}" + ("" if inner[0] is str else f", each {describe(inner[0])}")
    elif kind is int and bounds != Meta():
        words = f"a whole number from {bounds.ge:,} to {(bounds.le or 0) if bounds.lt is None else bounds.lt - 1:,}"
    elif kind is float and bounds != Meta():
        low = f"[{bounds.ge:g}" if bounds.gt is None else f"({bounds.gt:g}"
        words = f"a number in {low}, " + (f"{bounds.lt:g})" if bounds.le is None else f"{bounds.le:g}]")
    else:
        words = _IN_WORDS[kind]
    return words


def convert(key: str, value: Any, hint: Any) -> Any:
    """Return a value as its setting's declared type has it: ``"2e-4"``, as YAML reads that, becomes a float.

    Raises:
        ConfigError: the type does not admit it.
    """
    if _is_group(hint):
        if isinstance(value, hint):
            return value
        raise ConfigError(f"{key} is {value!r}: it is a group of settings, a {hint.__name__}")
    plain = _plain(value, hint)
    try:
        return msgspec.convert(plain, hint, strict=False)
    except msgspec.ValidationError as error:
        with suppress(msgspec.ValidationError):  # a number out of range is shown as a number
            found = msgspec.convert(plain, without_bounds(hint), strict=False)
            value = value if isinstance(found, tuple) else found
        raise ConfigError(f"{key} is {'null' if value is None else repr(value)}: expected {describe(hint)}") from error


def without_bounds(hint: Any) -> Any:
    """Return a declared type without the bounds of its numbers and texts."""
    return functools.reduce(operator.or_, [kind for kind, _ in members(hint)])


def typed(group: type[Group], key: str, value: Any) -> Any:
    """Return a value of a setting by its declared type alone, whatever its bounds, as what a sweep tries.

    Raises:
        ConfigError: the type does not admit it.
    """
    (today,) = modernised(group, {key: value}).values()
    return convert(key, today, without_bounds(settings_in(group)[key].hint))


def _plain(value: Any, hint: Any) -> Any:
    """Return a value as msgspec takes it: paths, dates and numbers as text where text is wanted, text as a list."""
    kinds = kinds_of(hint)
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if value is None or (value == "null" and type(None) in kinds):
        return None
    if str in kinds and isinstance(value, int | float | datetime.date | PurePath) and not isinstance(value, bool):
        return str(value)
    if tuple in kinds and not isinstance(value, dict):
        item = next(get_args(kind)[0] for kind, _ in members(hint) if get_origin(kind) is tuple)
        return [_plain(each, item) for each in as_list(value)]
    if dict in kinds and isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return {str(name): inner for name, inner in value.items()} if isinstance(value, dict) else value


def as_list(value: object) -> list[Any]:
    """Return the items of a list as people write it: ``[a, b]``, its text, or ``"a,b"``; a single value is one item."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.split(",")]
    return [part[1:-1] if part[:1] == part[-1:] and part[:1] in ("'", '"') else part for part in parts if text.strip()]


def as_text(value: Any) -> Any:
    """Return a list as the text in which runs and sweeps record it, as all versions have; another value as it is."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def as_record(settings: Group) -> dict[str, Any]:
    """Return settings as nested mappings for the record of a run."""
    return dataclasses.asdict(settings, dict_factory=lambda fields: {name: as_text(value) for name, value in fields})


def flatten(settings: Group) -> dict[str, Any]:
    """Return the settings as ``{"optim.lr": 0.0002, ...}``, in the order of declaration."""
    paths = {name: setting.path for name, setting in settings_in(type(settings)).items()}
    return {name: functools.reduce(getattr, path, settings) for name, path in paths.items()}


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return ``settings`` with values replaced by dotted name, converted and checked.

    Raises:
        ConfigError: a setting does not exist, or its type does not admit the value.
    """
    known = settings_in(type(settings))
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise unknown_setting(name, value, list(known))
        *groups, last = known[name].path
        functools.reduce(lambda node, part: node.setdefault(part, {}), groups, tree)[last] = value
    return _replaced(settings, tree)


def _replaced(settings: Settings, tree: Mapping[str, Any]) -> Settings:
    old = {name: getattr(settings, name) for name in tree}
    changes = {name: _replaced(old[name], new) if isinstance(old[name], Group) else new for name, new in tree.items()}
    return dataclasses.replace(settings, **changes)


def build_settings(settings_class: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make settings from values by dotted name, those of earlier versions too.

    Raises:
        ConfigError: as `override`.
    """
    return override(settings_class(), modernised(settings_class, values))


def unknown_setting(key: str, value: object, known: Sequence[str]) -> ConfigError:
    """Return the error for a setting that does not exist; it names the nearest that does."""
    # The last part decides in case of a forgotten or mistaken group: `lr` is nearest to `optim.lr`.
    same_last = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, same_last or known, n=1, cutoff=0 if same_last else 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists all settings"
    return ConfigError(f"unknown setting {key} (value {value!r}){hint}")


@_cached
def former(group: type[Group], table: str) -> dict[str, Any]:
    """Return what a class and the groups in it declare in FORMER_NAMES or FORMER_VALUES, by dotted name."""
    found: dict[str, Any] = {}
    for name, setting in settings_in(group).items():
        prefix = name.removesuffix(setting.path[-1])
        for old, now in getattr(setting.group, table).items():
            found[prefix + old] = prefix + now if isinstance(now, str) else now
    return found


def modernised(
    group: type[Group],
    recorded: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    notices: list[str] | None = None,
    dashes: str = "",
) -> dict[str, Any]:
    """Return settings by dotted name with today's names and values, as written by this version or an earlier one.

    Args:
        group: the class.
        recorded: the settings.
        given: all that are given, which can decide what a setting is called now; left out, `recorded`.
        notices: a line is added for each that is of an earlier version.
        dashes: stand before names in the lines.

    Raises:
        ConfigError: two of them are one setting now, and there are `notices`.
    """
    today: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in recorded.items():
        new = former(group, "FORMER_NAMES").get(name, name)
        key = new if isinstance(new, str) else new(recorded if given is None else given)
        if key in today and notices is not None:
            both = f"{dashes}{origins[key]} and {dashes}{name} are both given"
            raise ConfigError(f"{both}, and are one setting now: give {dashes}{key} alone")
        today[key], origins[key] = former(group, "FORMER_VALUES").get(key, {}).get(str(value), value), name
        if (key, today[key]) != (name, value) and notices is not None:
            then, now = ("", "") if today[key] == value else (f" {value}", f" {today[key]}")
            notices.append(f"{dashes}{name}{then} is now {dashes}{key}{now}")
    return today
