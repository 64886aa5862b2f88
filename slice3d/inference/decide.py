"""What was asked for, and how a package's scores become its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slice3d import anatomy
from slice3d.errors import InputError
from slice3d.inference.settings import InferenceSettings
from slice3d.models.own_steps import KeepLargest
from slice3d.models.package import ModelPackage


@dataclass(frozen=True)
class Decision:
    """How scores become labels. values: label of each channel (softmax) or of each region in writing order (sigmoid).

    threshold: raw score above which a region is there.

    groups: name → channels (softmax) or one channel (sigmoid) whose probability is the structure's.
    """

    activation: str
    values: tuple[int, ...]
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    probabilities: tuple[str, ...] = ()
    threshold: float = 0.0


def decision_for(package: ModelPackage, wanted: Sequence[str], settings: InferenceSettings) -> Decision:
    """How this package's scores become labels of the wanted structures. Raises `InputError` for unknown names."""
    keep = kept(package, wanted)
    probabilities = tuple(anatomy.resolve(p, package.structures)[0] for p in settings.probabilities)
    groups = {}
    for name in dict.fromkeys([*wanted, *probabilities]):
        values = package.values(name)
        if package.activation == "softmax":
            groups[name] = tuple(values)
        else:
            groups[name] = (_region_channel(package, name, values),)
    if package.activation == "softmax":
        out = tuple(keep.get(value, 0) for value in range(max(package.labels) + 1))
    else:
        out = tuple(keep.get(value, 0) for value in package.regions)
    return Decision(package.activation, out, groups, probabilities, package.threshold)


def wanted_structures(package: ModelPackage, structures: Sequence[str] | None) -> tuple[str, ...]:
    """Canonical names of what was asked for; everything the package knows for None. Raises `InputError`."""
    if structures is None:
        return package.structures
    if not structures:
        raise InputError("no structure asked for; expected at least one")
    return tuple(dict.fromkeys(name for s in structures for name in anatomy.resolve(s, package.structures)))


@dataclass(frozen=True)
class Search:
    """What a run looks for, and what is done to it afterwards.

    structures: all that was asked for among them. own_steps: those that belong to the package. inside: labels that lose
    what lies in small pieces beside the body. cleaned: whether the result is cleaned by `postprocess.clean`.
    """

    structures: tuple[str, ...]
    own_steps: tuple[KeepLargest, ...]
    inside: tuple[int, ...]
    cleaned: bool


def search_for(package: ModelPackage, wanted: Sequence[str], settings: InferenceSettings) -> Search:
    """What has to be looked for so that `wanted` comes out right.

    Steps that belong to the package may weigh structures against each other: these, and tissues, see all of them. Then all
    that was asked for must lie inside the body. Otherwise the body is looked for on account of bones alone, which rails
    are taken for most: for others it would cost the search for their region.
    """
    steps = package.keep_largest if settings.postprocess is not False else ()
    everything = bool(steps or package.tissues)
    cleaned = settings.postprocess if settings.postprocess is not None else package.origin == "native"
    names: Sequence[str] = ()
    if cleaned and "body" in package.structures and "body" not in wanted:
        bones = [n for n in wanted if n in anatomy.STRUCTURES and anatomy.STRUCTURES[n].kind == "bone"]
        names = wanted if everything else bones
    inside = tuple(value for name in names for value in package.values(name))
    if everything:
        return Search(package.structures, steps, inside, cleaned)
    return Search((*wanted, "body") if inside else tuple(wanted), steps, inside, cleaned)


def kept(package: ModelPackage, wanted: Sequence[str]) -> dict[int, int]:
    """Label value of the model → value in a result that holds only `wanted`.

    What lies inside a wanted structure and was not asked for itself (the organs inside the body, a tumour inside the
    liver) takes the value of the structure; the two sides of a pair stay apart.
    """
    members = {name: frozenset(package.values(name)) for name in wanted}
    alike: dict[tuple[str, ...], list[int]] = {}
    for value in sorted(frozenset().union(*members.values())):
        alike.setdefault(tuple(name for name in wanted if value in members[name]), []).append(value)
    out: dict[int, int] = {}
    for owners, values in alike.items():
        own = [value for value in values if package.labels[value] in owners]
        out.update({value: own[0] if own else value for value in values})
    return out


def names_of(package: ModelPackage, wanted: Sequence[str]) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
    """Labels and groups that a result holding only `wanted` needs."""
    values_of = kept(package, wanted)
    names = {value: package.labels[value] for value in sorted(set(values_of.values()))}
    groups = {}
    for name, members in package.groups.items():
        values = {values_of[v] for v in members if v in values_of}
        whole = set(members) == {v for v, value in values_of.items() if value in values}
        if whole and [names[v] for v in values] != [name]:
            groups[name] = tuple(sorted(values))
    return names, groups


def only(labels: NDArray[Any], package: ModelPackage, wanted: Sequence[str]) -> NDArray[Any]:
    """Labels of everything the package knows → labels of what is wanted."""
    table = np.zeros(max(package.labels) + 1, labels.dtype)
    for value, result in kept(package, wanted).items():
        table[value] = result
    out: NDArray[Any] = table[labels]
    return out


def label_type(package: ModelPackage) -> Any:
    """The smallest unsigned integer type that holds the package's labels."""
    return np.uint8 if max(package.labels) < 256 else np.uint16


def _region_channel(package: ModelPackage, name: str, values: Sequence[int]) -> int:
    """Which sigmoid channel is the structure: the region that holds exactly its label values."""
    for channel, value in enumerate(package.regions):
        members = package.description.get("region_values", [[v] for v in package.regions])[channel]
        if sorted(members) == sorted(values) or (len(values) == 1 and value == values[0]):
            return channel
    raise InputError(f"model {package.name!r} gives no score of its own for {name!r}; ask for its regions instead")
