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
class Refinement:
    """A structure that the package `model` draws better in a crop around what was found.

    structure: a label's name. finds: the name of the same thing in `model`. margin_mm: of the crop, along R, A and S.
    dark_to_bright: tissues whose grey values must come in this order, because `model` knows no other contrast.
    """

    structure: str
    model: str
    finds: str
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


def refinements(raw: Mapping[str, Any], wrong: Wrong, labels: Mapping[int, str]) -> tuple[Refinement, ...]:
    """`refinements` of a `model.json`."""
    known = {str(t.get("name")) for t in raw.get("tissues", []) if isinstance(t, dict)}
    expected = "objects with structure (a label), model, finds, margin_mm (three numbers) and dark_to_bright (tissues)"
    try:
        found = tuple(
            Refinement(
                str(r["structure"]), str(r["model"]), str(r["finds"]),
                (float(r["margin_mm"][0]), float(r["margin_mm"][1]), float(r["margin_mm"][2])),
                tuple(str(t) for t in r.get("dark_to_bright", [])),
            )
            for r in raw.get("refinements", [])
        )  # fmt: skip
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise wrong("refinements", expected) from error
    if not all(r.structure in labels.values() and set(r.dark_to_bright) <= known for r in found):
        raise wrong("refinements", expected)
    return found
