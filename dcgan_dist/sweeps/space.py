"""The search space of a sweep: settings by their dotted names, and how values are chosen for them.

In YAML (values are converted to the declared types of the settings)::

    space:
      optim.lr: {loguniform: [1e-5, 1e-1]}
      model.batch_norm: {choice: [paper, all, none]}
      model.norm_momentum: {uniform: [0.01, 0.3], when: {model.batch_norm: [paper, all]}}
      model.ngf, model.ndf: {grid: [[16, 16], [32, 32]]}

The last line sets two settings together. A setting with `when` is only searched in trials in which the other setting
has one of the given values; in other trials it keeps its value from the settings of the sweep. Values are not checked
here: if a setting refuses a value (`optim.beta1` of 1.5), the trial that draws it fails with the setting's message.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dcgan_dist.config import ALTERNATIVES, Config, flatten
from dcgan_dist.errors import ConfigError
from dcgan_dist.settings import convert, kinds_of, settings_in, typed, unknown_setting
from dcgan_dist.sweeps.settings import SweepConfig

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

RANGES = ("uniform", "loguniform", "randint")
LISTS = ("choice", "grid")

# Settings that the sweep itself sets for each trial.
_SET_BY_SWEEP = {
    "name": "each trial has its own name",
    "run_dir": "each trial has its own run directory",
    "cluster.storage": "each trial has its own run directory",
    "cluster.cpus_per_worker": "give cpus_per_trial",
    "training.log_every": "it follows from the milestones",
    "training.sample_every": "it follows from the milestones",
    "training.checkpoint_every": "it follows from the milestones",
    "training.keep_every": "it follows from the milestones",
    "cluster.workers": "it is the same for all trials of a sweep",
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One entry of the space: a setting, or several that are set together.

    Attributes:
        keys: dotted names of the settings.
        kind: `uniform`, `loguniform`, `randint`, `choice` or `grid`.
        low: lower end of a range.
        high: upper end of a range, included.
        values: values of a list; each has one value for each key.
        when: conditions: by the name of another setting, the values for which this entry is searched.
    """

    keys: tuple[str, ...]
    kind: str
    low: float = math.nan
    high: float = math.nan
    values: tuple[tuple[Any, ...], ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The keys, separated by commas."""
        return ", ".join(self.keys)

    def is_active(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether the entry is searched, given the values of the settings that it depends on."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())

    def can_have(self, key: str, value: Any) -> bool:
        """Return whether the entry can give `value` to one of its settings."""
        if self.kind in LISTS:
            return any(row[self.keys.index(key)] == value for row in self.values)
        return isinstance(value, int | float) and self.low <= value <= self.high

    def draw(self, seed: int, number: int) -> Values:
        """Return the values of trial `number`; they do not depend on the other entries of the space."""
        name = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        generator = np.random.default_rng([seed, number, name])
        if self.kind in LISTS:
            return self.pick(int(generator.integers(len(self.values))))
        if self.kind == "randint":
            return self._typed(int(generator.integers(int(self.low), int(self.high), endpoint=True)))
        if self.kind == "uniform":
            return self._typed(float(generator.uniform(self.low, self.high)))
        drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return self._typed(min(max(drawn, self.low), self.high))

    def pick(self, number: int) -> Values:
        """Return the values with the index `number` in a list."""
        return dict(zip(self.keys, self.values[number], strict=True))

    def _typed(self, value: float) -> Values:
        return {self.keys[0]: value if _is_whole(self.keys[0]) else float(value)}

    @property
    def distribution(self) -> BaseDistribution:
        """The distribution in Optuna; the values of a list are represented by their JSON."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind in LISTS:
            return CategoricalDistribution([json.dumps(values) for values in self.values])
        if self.kind == "randint":
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.kind == "loguniform")

    def suggest(self, trial: optuna.Trial) -> Values:
        """Ask Optuna for values."""
        if self.kind in LISTS:
            texts = [json.dumps(values) for values in self.values]
            return self.pick(texts.index(trial.suggest_categorical(self.name, texts)))
        if self.kind == "randint":
            return self._typed(trial.suggest_int(self.name, int(self.low), int(self.high)))
        return self._typed(trial.suggest_float(self.name, self.low, self.high, log=self.kind == "loguniform"))


_KNOWN = settings_in(Config)


def _is_whole(key: str) -> bool:
    return int in kinds_of(_KNOWN[key].hint)


def _parse_entry(name: str, raw: object) -> Entry:
    keys = tuple(part.strip().replace("-", "_") for part in name.split(","))
    for key in keys:
        if key not in _KNOWN and key in settings_in(SweepConfig):
            raise ConfigError(f"{key} cannot be searched: it is the same for all trials of a sweep")
        if key not in _KNOWN:
            raise unknown_setting(key, raw, list(_KNOWN))
        if key in _SET_BY_SWEEP:
            raise ConfigError(f"{key} cannot be searched: {_SET_BY_SWEEP[key]}")
    kinds = RANGES + LISTS
    if not isinstance(raw, dict) or len(set(raw) & set(kinds)) != 1 or set(raw) - {*kinds, "when"}:
        kind_list = ", ".join(kinds)
        raise ConfigError(
            f"space has {name}: {raw!r}: give one of {kind_list}, such as {{uniform: [0, 1]}}, and `when`"
        )
    kind = next(kind for kind in kinds if kind in raw)
    given, when = raw[kind], _parse_when(name, raw.get("when", {}))
    if not isinstance(given, list) or not given:
        raise ConfigError(f"space has {name}: {kind}: {given!r}: expected a list that is not empty")
    if kind in LISTS:
        return Entry(keys, kind, values=_parse_values(name, keys, given), when=when)
    if len(keys) > 1:
        raise ConfigError(f"space has {name}: {kind}: settings that are set together need choice or grid")
    low, high = _parse_range(keys[0], kind, given)
    return Entry(keys, kind, low, high, when=when)


def _parse_values(name: str, keys: tuple[str, ...], given: list[Any]) -> tuple[tuple[Any, ...], ...]:
    values: list[tuple[Any, ...]] = []
    for item in given:
        row = item if len(keys) > 1 else [item]
        if not isinstance(row, list) or len(row) != len(keys):
            raise ConfigError(f"space has {item!r} for {name}: expected a list of {len(keys)} values, one for each")
        made = tuple(typed(Config, key, value) for key, value in zip(keys, row, strict=True))
        if made in values:
            raise ConfigError(f"space has {item!r} twice for {name}")
        values.append(made)
    return tuple(values)


def _parse_range(key: str, kind: str, given: list[Any]) -> tuple[float, float]:
    if not {int, float} & set(kinds_of(_KNOWN[key].hint)):
        raise ConfigError(f"space has {key}: {kind}: {key} is not a number: take choice or grid")
    if kind != "randint" and _is_whole(key):
        raise ConfigError(f"space has {key}: {kind}: {key} is a whole number: take randint, choice or grid")
    if len(given) != 2:
        raise ConfigError(f"space has {key}: {kind}: {given!r}: expected [LOW, HIGH]")
    low, high = (convert(key, value, int if kind == "randint" else float) for value in given)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"space has {key}: {kind}: {given!r}: LOW must be less than HIGH, both finite")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"space has {key}: {kind}: {given!r}: LOW must be more than 0")
    return low, high


def _parse_when(name: str, raw: object) -> dict[str, tuple[Any, ...]]:
    if not isinstance(raw, dict):
        raise ConfigError(f"space has {name}: when: {raw!r}: expected {{OTHER: VALUE}} or {{OTHER: [A, B]}}")
    when: dict[str, tuple[Any, ...]] = {}
    for other, values in raw.items():
        key = str(other).replace("-", "_")
        if key not in _KNOWN:
            raise unknown_setting(key, values, list(_KNOWN))
        listed = values if isinstance(values, list) else [values]
        when[key] = tuple(typed(Config, key, value) for value in listed)
    return when


def _ordered(entries: list[Entry]) -> tuple[Entry, ...]:
    """Return the entries in the given order, except that each comes after those that it depends on."""
    searched: set[str] = set()
    for entry in entries:
        for key in entry.keys:
            if key in searched:
                raise ConfigError(f"space has {key} twice")
            searched.add(key)
    _refuse_impossible(entries)
    ordered: list[Entry] = []
    left, placed = list(entries), set[str]()
    while left:
        for entry in left:
            for key in entry.when:
                if key not in searched:
                    raise ConfigError(
                        f"space has {entry.name} when {key} has certain values, but {key} is not searched"
                    )
        ready = next((entry for entry in left if entry.when.keys() <= placed), None)
        if ready is None:
            cycle = ", ".join(entry.name for entry in left)
            raise ConfigError(f"space has conditions (`when`) that depend on each other in a circle: {cycle}")
        left.remove(ready)
        ordered.append(ready)
        placed.update(ready.keys)
    return tuple(ordered)


def _refuse_impossible(entries: list[Entry]) -> None:
    """Refuse conditions that no trial can fulfil, and alternative settings that would both be set."""
    giving = {key: entry for entry in entries for key in entry.keys}
    for entry in entries:
        for key, values in entry.when.items():
            if key in giving and not any(giving[key].can_have(key, value) for value in values):
                listed = " or ".join(map(repr, values))
                raise ConfigError(f"space has {entry.name} when {key} is {listed}, which {key} never is")
    for group in ALTERNATIVES:
        always = [key for key in group if key in giving and not giving[key].when]
        if len(always) > 1:
            raise ConfigError(f"space has both {always[0]} and {always[1]}: a run has one of them")


@dataclass(frozen=True)
class Space:
    """The search space. Values are dictionaries by dotted name, without settings whose `when` does not hold.

    Attributes:
        entries: the entries, each after those that it depends on.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Space:
        """Parse the setting `space`.

        Raises:
            ConfigError: it is empty, or has an unknown setting, a value of a wrong type, an empty range, or conditions
                that cannot be fulfilled.
        """
        if not raw:
            raise ConfigError("space is empty: say what is searched, such as {optim.lr: {loguniform: [1e-5, 1e-2]}}")
        return cls(_ordered([_parse_entry(str(name), entry) for name, entry in raw.items()]))

    @property
    def keys(self) -> tuple[str, ...]:
        """Dotted names of all settings that are searched."""
        return tuple(key for entry in self.entries for key in entry.keys)

    def sample(self, seed: int, number: int) -> Values:
        """Return the values of trial `number` of a random search; they depend only on the two arguments."""
        values: Values = {}
        for entry in self.entries:
            if entry.is_active(values):
                values |= entry.draw(seed, number)
        return values

    def grid(self, seed: int = 0, draws: int = 1) -> list[Values]:
        """Return every combination of the values of `grid` and `choice`.

        Args:
            seed: seed of the draws from ranges.
            draws: number of draws if the space also has ranges: all combinations with the first draw, then all with the
                second, and so on. So combinations are compared at the same drawn values, and more draws only add
                trials at the end. Without ranges, each combination is taken once.
        """
        if all(entry.kind in LISTS for entry in self.entries):
            draws = 1
        return [values for draw in range(draws) for values in self._combinations({}, seed, draw)]

    def _combinations(self, chosen: Values, seed: int, draw: int, first: int = 0) -> Iterator[Values]:
        """Yield the combinations of the entries from `first` on, each added to the values `chosen` before."""
        if first == len(self.entries):
            yield chosen
            return
        entry = self.entries[first]
        options: list[Values] = [{}]
        if entry.is_active(chosen):
            indices = range(len(entry.values))
            options = [entry.pick(index) for index in indices] if entry.kind in LISTS else [entry.draw(seed, draw)]
        for option in options:
            yield from self._combinations(chosen | option, seed, draw, first + 1)

    def suggest(self, trial: optuna.Trial) -> Values:
        """Ask Optuna for the values of a trial, one after another, so that it also learns the conditions."""
        values: Values = {}
        for entry in self.entries:
            if entry.is_active(values):
                values |= entry.suggest(trial)
        return values

    def as_optuna(self, values: Mapping[str, Any]) -> tuple[Values, dict[str, BaseDistribution]]:
        """Return values as Optuna would have suggested them, and their distributions, for `optuna.create_trial`."""
        params: Values = {}
        distributions: dict[str, BaseDistribution] = {}
        for entry in self.entries:
            if all(key in values for key in entry.keys):
                chosen = [values[key] for key in entry.keys]
                params[entry.name] = json.dumps(chosen) if entry.kind in LISTS else chosen[0]
                distributions[entry.name] = entry.distribution
        return params, distributions


def run_changes(parameters: Mapping[str, Any]) -> Values:
    """Return the changes that a trial's values make to the settings of its run, by dotted name.

    A value unsets the alternatives of its setting (`training.epochs` unsets `training.steps`).
    """
    ended = {other for group in ALTERNATIVES for key in group if key in parameters for other in group}
    return dict.fromkeys(ended) | dict(parameters)


def run_settings(config: SweepConfig, parameters: Mapping[str, Any]) -> Values:
    """Return the settings of a trial's run by dotted name: those of the sweep, over them the trial's; unchecked."""
    return flatten(config.train) | run_changes(parameters)


__all__ = ["Entry", "Space", "run_changes", "run_settings"]
