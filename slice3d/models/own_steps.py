"""What a package says happens to its network's output: values for `inference`, read from `model.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from slice3d.errors import ModelError

Wrong = Callable[[str, str], ModelError]


@dataclass(frozen=True)
class KeepLargest:
    """A step after the network: only the largest `components` components of labels stay, as in MONAI's transform.

    labels: label values (None: all). independent: each label by itself rather than their union. connectivity: 1 (faces),
    2 (edges) or 3 (corners touch).
    """

    labels: tuple[int, ...] | None = None
    independent: bool = True
    connectivity: int = 3
    components: int = 1


@dataclass(frozen=True)
class Tissue:
    """Labels that look alike in one image; components: Gaussians that describe how. The first tissue is background."""

    name: str
    labels: tuple[int, ...]
    components: int = 1


@dataclass(frozen=True)
class Region:
    """Where a package for crops is to look in a larger image: around structures that another package finds.

    model, structures: whose and which. margin_mm: of the crop around each of them, along R, A and S. dark_to_bright:
    tissues of that package whose grey values must come in this order, because this one knows no other contrast.
    """

    model: str
    structures: tuple[str, ...]
    margin_mm: tuple[float, float, float]
    dark_to_bright: tuple[str, ...] = ()


def keep_largest(raw: Mapping[str, Any], wrong: Wrong) -> tuple[KeepLargest, ...]:
    """`keep_largest` of a `model.json`. Raises what `wrong` (field, expected) makes."""
    value = raw.get("keep_largest", [])
    if not isinstance(value, list) or not all(
        isinstance(entry, dict) and set(entry) <= set(KeepLargest.__dataclass_fields__) for entry in value
    ):
        raise wrong("keep_largest", f"a list of objects with {', '.join(KeepLargest.__dataclass_fields__)}")
    try:
        steps = tuple(
            replace(KeepLargest(**entry), labels=None if entry.get("labels") is None else tuple(entry["labels"]))
            for entry in value
        )
    except TypeError as error:
        raise wrong("keep_largest", "lists of label values in `labels`") from error
    if not all(step.connectivity in (1, 2, 3) and step.components >= 1 for step in steps):
        raise wrong("keep_largest", "connectivity 1, 2 or 3 and at least one component")
    return steps


def tissues(raw: Mapping[str, Any], wrong: Wrong, labels: Mapping[int, str], channels: int) -> tuple[Tissue, ...]:
    """`tissues` of a `model.json`: together they must hold background and every label once."""
    expected = "objects with name, labels and components that share out background (0, first) and every label"
    try:
        found = tuple(
            Tissue(str(t["name"]), tuple(t["labels"]), int(t.get("components", 1))) for t in raw.get("tissues", [])
        )
    except (TypeError, KeyError, ValueError) as error:
        raise wrong("tissues", expected) from error
    dealt = [label for tissue in found for label in tissue.labels]
    if found and (
        sorted(dealt) != [0, *sorted(labels)]
        or sorted(labels) != list(range(1, len(labels) + 1))
        or 0 not in found[0].labels
        or min(tissue.components for tissue in found) < 1
        or channels != 1
        or raw.get("activation", "softmax") != "softmax"
    ):
        raise wrong("tissues", expected + ", one input channel and softmax")
    return found


def region(raw: Mapping[str, Any], wrong: Wrong) -> Region | None:
    """`region` of a `model.json`; None where there is none."""
    value = raw.get("region")
    if value is None:
        return None
    try:
        a, b, c = (float(margin) for margin in value["margin_mm"])
        found = Region(
            str(value["model"]),
            tuple(str(n) for n in value["structures"]),
            (a, b, c),
            tuple(str(t) for t in value.get("dark_to_bright", [])),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise wrong(
            "region", "an object with model, structures, margin_mm (three numbers) and dark_to_bright"
        ) from error
    if not found.structures or min(found.margin_mm) < 0:
        raise wrong("region", "at least one structure and margins of at least 0 mm")
    return found
