"""Reversible rules between two layouts of one state dict.

official state -> KeyMap.forward -> native state -> KeyMap.backward -> official state, bit for bit

A key pattern is literal text with named fields: `{i}` stands for digits, `{way:text|image|audio}` for a regular
expression. A pattern matches whole keys only, and both sides of a rule use the same fields, which is what makes a rule
reversible:

    Rename("fusion_model.layers.{i}.{way:text|image}_ffn.3.{p:weight|bias}", "trunk.layers.{i}.ffn.{way}.down_proj.{p}")

The first rule that matches a key takes it. Nothing is computed until a tensor of the result is asked for, so dropped
tensors are never read and rules work on meta tensors too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from plait.weights.files import LazyState, StateError, listed

logger = logging.getLogger(__name__)

Fields = dict[str, str]
Restore = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")
_DIGITS = "[0-9]+"


@dataclass(frozen=True)
class Rule:
    """What a rule is: patterns on both sides, and what becomes of tensors there and back.

    A rule is a frozen dataclass, so that it can be compared, cached and printed.

    Raises:
        ValueError: where patterns of a rule have different fields.
    """

    @property
    def official(self) -> tuple[str, ...]:
        """Patterns of the official side, in the order of `there`'s tensors."""
        raise NotImplementedError

    @property
    def native(self) -> tuple[str, ...]:
        """Patterns of the native side, in the order of `back`'s tensors."""
        raise NotImplementedError

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        """Native tensors from official ones, in the order of the patterns.

        Views where possible: nothing is copied that need not be.
        """
        return tensors

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """Official tensors from native ones, in the order of the patterns."""
        return tensors

    def __post_init__(self) -> None:
        names = [{field[1] for field in _FIELD.finditer(text)} for text in (*self.official, *self.native)]
        if any(fields != names[0] for fields in names):
            raise ValueError(f"expected the same fields in every pattern of {self}, got {[sorted(n) for n in names]}")


@dataclass(frozen=True)
class Rename(Rule):
    """The same tensor under another name.

    source: official pattern; target: native pattern.

    Example:
        >>> state, report = KeyMap([Rename("norm.{p:weight|bias}", "final.{p}")]).forward(
        ...     {"norm.weight": torch.ones(2)}
        ... )
        >>> list(state)
        ['final.weight']
    """

    source: str
    target: str

    @property
    def official(self) -> tuple[str, ...]:
        """One pattern: the official name."""
        return (self.source,)

    @property
    def native(self) -> tuple[str, ...]:
        """One pattern: our name."""
        return (self.target,)


@dataclass(frozen=True)
class Alias(Rename):
    """An older spelling that is understood on the way there and never written on the way back."""


@dataclass(frozen=True)
class Transpose(Rename):
    """The same numbers with permuted dimensions: native dimension k is official dimension `dims[k]`.

    Example:
        >>> rule = Transpose("proj", "out_proj.weight")
        >>> rule.there([torch.zeros(2, 3)])[0].shape
        torch.Size([3, 2])
    """

    dims: tuple[int, ...] = (1, 0)

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        """The official tensor with its dimensions in native order."""
        return [self._permuted(tensor, self.dims) for tensor in tensors]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """The native tensor with its dimensions in official order: the inverse permutation."""
        # arg-sort: the inverse of a permutation
        order = tuple(sorted(range(len(self.dims)), key=self.dims.__getitem__))
        return [self._permuted(tensor, order) for tensor in tensors]

    def _permuted(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """The tensor with its dimensions in `order`. Raises ValueError where it has another number."""
        if sorted(order) != list(range(tensor.ndim)):
            raise ValueError(f"expected {self.source} with dimensions for {self.dims}, got {tuple(tensor.shape)}")
        return tensor.permute(order)


@dataclass(frozen=True)
class Singleton(Rename):
    """The same numbers where one side has dimensions of size 1 that the other lacks.

    official_dims, native_dims: the places of these dimensions on either side.
    """

    official_dims: tuple[int, ...] = ()
    native_dims: tuple[int, ...] = ()

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        """Without the official dimensions of size 1, with the native ones."""
        return [self._moved(tensors[0], self.official_dims, self.native_dims)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """Without the native dimensions of size 1, with the official ones."""
        return [self._moved(tensors[0], self.native_dims, self.official_dims)]

    def _moved(self, tensor: Tensor, away: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
        """Without the dimensions `away`, with the new ones. ValueError where one is not 1."""
        if any(dim >= tensor.ndim or tensor.shape[dim] != 1 for dim in away):
            raise ValueError(f"expected {self.source} with size 1 at {away}, got {tuple(tensor.shape)}")
        # from behind, so that the places of those still to go stay right
        for dim in sorted(away, reverse=True):
            tensor = tensor.squeeze(dim)
        for dim in sorted(new):
            tensor = tensor.unsqueeze(dim)
        return tensor


@dataclass(frozen=True)
class Split(Rule):
    """One official tensor cut along `dim` into several native ones.

    Args:
        source: official pattern. targets: native patterns, in the order of the parts.
        dim: along which it is cut.
        sizes: of the parts; None: equal parts. A fused q, k, v projection is the common case.

    Example:
        >>> rule = Split("in_proj_weight", ("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        >>> [tuple(part.shape) for part in rule.there([torch.zeros(6, 2)])]
        [(2, 2), (2, 2), (2, 2)]
    """

    source: str
    targets: tuple[str, ...]
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    @property
    def official(self) -> tuple[str, ...]:
        """One pattern: the whole."""
        return (self.source,)

    @property
    def native(self) -> tuple[str, ...]:
        """One pattern per part."""
        return self.targets

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        """The official tensor cut into the native ones."""
        return _cut(tensors[0], self.dim, self.sizes, len(self.targets), self.source)

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """The native tensors laid into the official one."""
        return [_join(tensors, self.dim, self.sizes, self.source)]


@dataclass(frozen=True)
class Concat(Rule):
    """Several official tensors laid along `dim` into one native one.

    Args:
        sources: official patterns, in the order of the parts. target: native pattern.
        dim: along which they are laid.
        sizes: of the parts; None: equal parts. All parts must be there, of one dtype.

    Example:
        >>> rule = Concat(("q.weight", "k.weight"), "qk.weight")
        >>> rule.there([torch.zeros(2, 2), torch.zeros(2, 2)])[0].shape
        torch.Size([4, 2])
    """

    sources: tuple[str, ...]
    target: str
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    @property
    def official(self) -> tuple[str, ...]:
        """One pattern per part."""
        return self.sources

    @property
    def native(self) -> tuple[str, ...]:
        """One pattern: the whole."""
        return (self.target,)

    def there(self, tensors: list[Tensor]) -> list[Tensor]:
        """The official tensors laid into the native one."""
        return [_join(tensors, self.dim, self.sizes, self.target)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        """The native tensor cut into the official ones."""
        return _cut(tensors[0], self.dim, self.sizes, len(self.sources), self.target)


@dataclass(frozen=True)
class Drop(Rule):
    """An official tensor that the native layout does without, and why.

    Args:
        source: official pattern; `{_:.*}` in it stands for anything.
        reason: for the report of a conversion.
        restore: makes the dropped tensors again from the native state (buffers that the configuration determines);
            without it they are gone on the way back.
    """

    source: str
    reason: str
    restore: Restore | None = None

    @property
    def official(self) -> tuple[str, ...]:
        """One pattern, of what is dropped."""
        return (self.source,)

    @property
    def native(self) -> tuple[str, ...]:
        """None: the native side has nothing of it."""
        return ()


def prefixed(rules: Iterable[Rule], official: str = "", native: str = "") -> tuple[Rule, ...]:
    """The same rules for a sub-module that sits under a prefix on either side.

    Args:
        rules: of the sub-module alone.
        official, native: put in front of every pattern; they may have fields.

    Raises:
        ValueError: for a rule that is none of this module's.

    Example:
        >>> prefixed([Rename("cls_token", "cls")], "model.vision_model.", "vision.")[0].target
        'vision.cls'
    """

    def restored(restore: Restore, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inner = {key.removeprefix(native): partial(state.__getitem__, key) for key in state if key.startswith(native)}
        return {official + key: tensor for key, tensor in restore(LazyState(inner)).items()}

    def moved(rule: Rule) -> Rule:
        match rule:
            case Rename():
                return replace(rule, source=official + rule.source, target=native + rule.target)
            case Split():
                return replace(rule, source=official + rule.source, targets=tuple(native + t for t in rule.targets))
            case Concat():
                return replace(rule, sources=tuple(official + s for s in rule.sources), target=native + rule.target)
            case Drop():
                restore = rule.restore and partial(restored, rule.restore)
                return replace(rule, source=official + rule.source, restore=restore)
        raise ValueError(f"expected one of the rules of this module, got {rule}")

    return tuple(moved(rule) for rule in rules)


def count_layers(names: Iterable[str], prefix: str) -> int:
    """One more than the highest layer number behind `prefix`, such as `encoder.layer.`; 0 without any."""
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


@dataclass(frozen=True)
class Report:
    """What a conversion did with every key it was given."""

    moved: dict[str, tuple[str, ...]]
    """Input key -> output keys."""
    dropped: dict[str, str]
    """Input key -> reason."""


class KeyMap:
    """Rules applied as a whole: strict, and refusing to go there where it could not come back.

    Args:
        rules: the first one that matches a key takes it, so special cases stand in front.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._likely: dict[tuple[Side, str], list[tuple[Rule, str]]] = {}

    def explain(self, keys: Iterable[str]) -> dict[str, Rule | None]:
        """The rule that takes each official key, or None.

        keys: of a file; nothing is read.
        """
        return {key: found.rule if (found := self._find(key, "official")) else None for key in keys}

    def forward(self, state: Mapping[str, Tensor]) -> tuple[LazyState, Report]:
        """Official layout -> native layout.

        Args:
            state: the whole official state, or meta tensors of its shapes.

        Returns:
            The native state, its tensors unmade, and what became of every key.

        Raises:
            StateError: with every key that no rule takes, whose partners are missing, that collides,
                or that would not lead back to itself.
        """
        groups = self._group(state, "official")
        for group in (group for group in groups if not isinstance(group.rule, Alias)):
            for key in group.outputs:
                back = self._find(key, "native")
                # checked before anybody relies on a layout that could not be written back
                if back is None or back.outputs != group.inputs:
                    got = "nothing" if back is None else ", ".join(back.outputs)
                    raise StateError(f"expected {key} to lead back to {', '.join(group.inputs)}, got {got}", [key])
        native, report = self._run(state, groups)
        for key, reason in report.dropped.items():
            logger.debug("dropped %s: %s", key, reason)
        return native, report

    def backward(self, state: Mapping[str, Tensor]) -> LazyState:
        """Native layout -> official layout, dropped tensors restored where their rule can.

        Args:
            state: the whole native state.

        Raises:
            StateError: as `forward`, and where a rule restores keys that are not its own.
        """
        official, _ = self._run(state, self._group(state, "native"))
        readers: dict[str, Callable[[], Tensor]] = {key: partial(official.__getitem__, key) for key in official}
        for rule in self.rules:
            if isinstance(rule, Drop) and rule.restore is not None:
                for key, tensor in rule.restore(state).items():
                    if _match(rule.source, key) is None or key in official:
                        raise StateError(f"expected {rule} to restore keys of its own, got {key}", [key])
                    # bound as a default: a closure would see the last tensor of the loop
                    readers[key] = lambda tensor=tensor: tensor
        return LazyState(readers)

    def _group(self, state: Mapping[str, Tensor], side: Side) -> list[_Group]:
        """The rule applications that `state` calls for, each with all its inputs present.

        Raises StateError with every key that no rule takes, and with missing parts of combined tensors.
        """
        unknown, groups = [], {}
        for key in state:
            found = self._find(key, side)
            if found is None:
                unknown.append(key)
            else:
                groups[found.rule, tuple(sorted(found.fields.items()))] = found
        if unknown:
            raise StateError(
                f"expected only keys that a rule explains, got {len(unknown)} others: {listed(unknown)}; "
                "check that the file belongs to this model, or add a rule",
                unknown,
            )
        lacking = [key for group in groups.values() for key in group.inputs if key not in state]
        if lacking:
            raise StateError(f"expected all parts of a combined tensor, got none of: {listed(lacking)}", lacking)
        return list(groups.values())

    def _find(self, key: str, side: Side) -> _Group | None:
        """The first rule with a pattern on `side` that matches `key`, None where there is none.

        An alias is an older spelling and never found from the native side.

        A file has thousands of keys and a family a hundred rules, but keys that differ in numbers alone have the same
        few candidates: those whose plain ends fit, numbers left open, so that none is lost by it.
        """
        form = _NUMBER.sub("0", key)
        likely = self._likely.get((side, form))
        if likely is None:
            likely = self._likely[side, form] = [
                (rule, pattern)
                for rule in self.rules
                if not (side == "native" and isinstance(rule, Alias))
                for pattern in (rule.official if side == "official" else rule.native)
                for head, tail in [_ends(pattern)]
                if form.startswith(_NUMBER.sub("0", head)) and form.endswith(_NUMBER.sub("0", tail))
            ]
        for rule, pattern in likely:
            fields = _match(pattern, key, (*rule.official, *rule.native))
            if fields is not None:
                return _Group(rule, {"": key} if isinstance(rule, Drop) else fields, side)
        return None

    def _run(self, state: Mapping[str, Tensor], groups: list[_Group]) -> tuple[LazyState, Report]:
        """The output state, its tensors unmade, and what became of every input key."""
        readers: dict[str, Callable[[], Tensor]] = {}
        report = Report({}, {})
        for group in groups:
            for key in group.inputs:
                if isinstance(group.rule, Drop):
                    report.dropped[key] = group.rule.reason
                else:
                    report.moved[key] = group.outputs
            for position, key in enumerate(group.outputs):
                # two keys of one name would overwrite each other in silence
                if key in readers:
                    raise StateError(f"expected one source for {key}, got a second: {', '.join(group.inputs)}", [key])
                readers[key] = partial(group.read, state, position)
        return LazyState(readers), report


Side = Literal["official", "native"]


@dataclass(frozen=True)
class _Group:
    """One application of a rule: the rule, the values of its fields and the direction."""

    rule: Rule
    fields: Fields
    side: Side

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys that this application takes."""
        patterns = self.rule.official if self.side == "official" else self.rule.native
        # A dropped key is kept whole, under the empty name: nothing has to be filled in for it.
        return (self.fields[""],) if isinstance(self.rule, Drop) else tuple(_fill(p, self.fields) for p in patterns)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Keys that it gives."""
        patterns = self.rule.native if self.side == "official" else self.rule.official
        return tuple(_fill(pattern, self.fields) for pattern in patterns)

    def read(self, state: Mapping[str, Tensor], position: int) -> Tensor:
        """The output at `position`, made from the inputs: the others of a split are made and left."""
        tensors = [state[key] for key in self.inputs]
        made = self.rule.there(tensors) if self.side == "official" else self.rule.back(tensors)
        return made[position]


_NUMBER = re.compile(r"\d+")


@cache
def _ends(pattern: str) -> tuple[str, str]:
    """The plain text before the first field of `pattern` and behind its last."""
    fields = list(_FIELD.finditer(pattern))
    return (pattern[: fields[0].start()], pattern[fields[-1].end() :]) if fields else (pattern, pattern)


@cache
def _regex(pattern: str, others: tuple[str, ...]) -> re.Pattern[str]:
    """`pattern` as an anchored regular expression; a bare field means what the rule's other patterns say it means."""
    meaning = {name: regex for other in (*others, pattern) for name, regex in _FIELD.findall(other) if regex}
    parts, seen, end = [], set(), 0
    for field in _FIELD.finditer(pattern):
        name = field[1]
        parts.append(re.escape(pattern[end : field.start()]))
        # a field that comes twice must have one value, as a back reference says
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{meaning.get(name, _DIGITS)})")
        seen.add(name)
        end = field.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


def _match(pattern: str, key: str, others: tuple[str, ...] = ()) -> Fields | None:
    """The values of a pattern's fields in a key, None where it does not match as a whole."""
    found = _regex(pattern, others).fullmatch(key)
    return found and found.groupdict()


def _fill(pattern: str, fields: Fields) -> str:
    """A pattern with its fields filled in: a key."""
    return _FIELD.sub(lambda field: fields[field[1]], pattern)


def _cut(tensor: Tensor, dim: int, sizes: tuple[int, ...] | None, parts: int, name: str) -> list[Tensor]:
    """A tensor along `dim` in parts of `sizes`, or equal ones. ValueError where it does not fit."""
    whole = tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else -1
    expected = sizes or (whole // parts,) * parts
    if len(expected) != parts or sum(expected) != whole or min(expected) < 0:
        raise ValueError(
            f"expected {name} to split into {parts} parts {expected} along {dim}, got {tuple(tensor.shape)}"
        )
    return list(tensor.split(list(expected), dim))


def _join(tensors: list[Tensor], dim: int, sizes: tuple[int, ...] | None, name: str) -> Tensor:
    """Parts of one dtype along `dim`. Raises ValueError for other sizes, shapes or dtypes.

    Checked before torch.cat, which promotes dtypes silently: coming back would not be bit-exact.
    """
    got = tuple(tensor.shape[dim] if -tensor.ndim <= dim < tensor.ndim else -1 for tensor in tensors)
    expected = sizes or got[:1] * len(tensors)
    dtypes = {tensor.dtype for tensor in tensors}
    others = {tuple(size for i, size in enumerate(t.shape) if i != dim % max(t.ndim, 1)) for t in tensors}
    if got != expected or -1 in got or len(dtypes) > 1 or len(others) > 1:
        raise ValueError(
            f"expected parts of {name} with sizes {expected} along {dim}, alike otherwise, of one dtype, "
            f"got {[tuple(tensor.shape) for tensor in tensors]} and {dtypes}"
        )
    return torch.cat(tensors, dim)
