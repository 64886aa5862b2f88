"""The model card of `ct-torso`: what it was trained on, by name and licence, and how it scored on what it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slice3d.training.annotate import CHECKED
from slice3d.training.cases import LABELLED, MAPS, UNLABELLED
from slice3d.training.export import CardFacts
from slice3d.training.structures import GROUPS

VERSION = "0.11.0"
LICENCE = "CC-BY-4.0"
TISSUES = (
    {"name": "air", "labels": [0], "components": 2},
    {"name": "body", "labels": [9], "components": 6},
    {"name": "liver", "labels": [1], "components": 2},
    {"name": "spleen", "labels": [2], "components": 1},
    {"name": "kidney", "labels": [3, 4], "components": 2},
    {"name": "lung", "labels": [5, 6], "components": 3},
    {"name": "bone", "labels": [7], "components": 3},
    {"name": "aorta", "labels": [8], "components": 1},
    {"name": "tumour", "labels": [10], "components": 1},
)
"""Bodies hold fat, muscle, bowel and its content; livers vessels; kidneys cortex and medulla; bones marrow and cortex."""


UNTESTED = {"liver_tumor": "learnt this from lesions that were made up"}
"""Structure → what must be said of it wherever it is asked for."""


def training_facts(held_out: Sequence[str], begun_with: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Every case by name and licence, and how it was used. held_out: the case that each network did not see, in order.

    begun_with: version and SHA-256 of the package whose networks the last stage began with.
    """
    return {
        "recipe": "slice3d train --recipe ct-torso" + (" --start PACKAGE" if begun_with else ""),
        **({"begun_with": dict(begun_with)} if begun_with else {}),
        "labelled": {name: source.licence for name, source in LABELLED.items()},
        "label_maps_for_synthesis": {name: source.licence for name, source in MAPS.items()},
        "pseudo_labelled": {
            name: {"licence": source.licence, "confirmed": list(CHECKED[name].structures)}
            for name, source in UNLABELLED.items()
        },
        "phantoms": "random stylised phantoms of this project",
        "held_out_by_fold": [[name] for name in held_out],
    }


def package_facts(
    held_out: Sequence[str], *, scores: Mapping[str, Any] | None = None, reliability: Mapping[str, Any] | None = None,
    begun_with: Mapping[str, str] | None = None,
) -> CardFacts:  # fmt: skip
    """Facts and card of the package.

    held_out: the case that each of its networks did not see. scores: case → structure → {dice, …}. begun_with: version and
    SHA-256 of the package whose networks these began with.
    """
    return CardFacts(
        name="ct-torso",
        version=VERSION,
        licence=LICENCE,
        modality=("CT",),
        groups=GROUPS,
        tissues=TISSUES,
        training=training_facts(held_out, begun_with),
        scores=scores or {},
        reliability={**(reliability or {}), "untested": UNTESTED},
        card=card_text(held_out, scores or {}, begun_with),
    )


def card_text(held_out: Sequence[str], scores: Mapping[str, Any], begun_with: Mapping[str, str] | None = None) -> str:
    """README.md of the package."""
    facts = training_facts(held_out)
    rows = [
        f"| {case} | {structure} | {value['dice']:.3f} |"
        for case, table in scores.items()
        if case in held_out
        for structure, value in table.items()
    ]
    trained = [f"- {name}: {licence}" for name, licence in facts["labelled"].items()]
    maps = [f"- {name}: {licence}" for name, licence in facts["label_maps_for_synthesis"].items()]
    pseudo = [
        f"- {name}: {entry['licence']}; confirmed: {', '.join(entry['confirmed']) or 'nothing but HU rules'}"
        for name, entry in facts["pseudo_labelled"].items()
    ]
    held = [f"- network {number}: {name}" for number, name in enumerate(held_out)]
    begun = (
        [
            f"Begun with the networks of version {begun_with['version']}; these are the mean of the weights at the beginning and "
            "at the end.",
            "",
        ]
        if begun_with
        else []
    )
    return "\n".join(
        [
            "# ct-torso", "",
            f"Liver, spleen, kidneys, lungs, bone, aorta, body and liver tumour on CT, 2.2 mm: {len(held)} 3D U-Nets whose "
            "scores are averaged. Trained from very little: a handful of real scans and CT painted from label maps. Not a "
            "medical device: look at every outline before you use it.", "",
            "## Scores on cases they were not trained on", "",
            "Each case by the one network that never saw it. The average of them, which is what runs by default, cannot be "
            "scored on these cases.", "",
            "| case | structure | Dice |", "|---|---|---|", *rows, "",
            "The liver tumour class was trained on synthetic tumours only and has not been tested on a real one: treat "
            "what it finds, and what it does not find, as a guess.", "",
            "## Trained on", "", "Labelled CT:", *trained, "", "Label maps from which CT was painted:", *maps, "",
            "CT without labels (rules on HU for lungs, bone and body; outlines confirmed by eye, the rest left open):",
            *pseudo, "", "Random stylised phantoms made by this project's code.", "",
            "Held out of one network each:", *held, "",
            *begun,
            "`docs/models.md` has the method, the pictures and the limits. Weights: CC BY 4.0, with attribution to the "
            "sources above.", "",
        ]
    )  # fmt: skip
