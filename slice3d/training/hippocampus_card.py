"""The model card of `mr-hippocampus`: data, licence, and how each network scored on the cases it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slice3d.training import crossval
from slice3d.training.export import CardFacts
from slice3d.training.hippocampus import GROUPS, LICENCE, SOURCE
from slice3d.training.settings import TrainSettings

VERSION = "0.2.0"
LARGEST_MM = 90.0
"""Crops of 24 to 59 mm were trained on; half as much again is let through."""

REGION = {
    "model": "mr-brain", "structures": ["hippocampus_left", "hippocampus_right"], "margin_mm": [10, 12, 12],
    "dark_to_bright": ["fluid", "grey matter", "white matter"],
}  # fmt: skip
"""On a whole head; T1 alone was trained on."""

WHILE_TRAINING = (
    "These are the Dice of the last validation of each fold's training: its first 12 held-out cases. "
    "`python -m benchmarks.accuracy --model "
    "mr-hippocampus` scores all cases the way a user would. Expected Dice is not calibrated in this version."
)


def package_facts(
    folds: Sequence[Sequence[str]], stages: Sequence[TrainSettings], scores: Mapping[str, Any]
) -> CardFacts:
    """Facts and card. scores: case → structure → measures, each case by the fold that held it out; may be empty."""
    return CardFacts(
        name="mr-hippocampus",
        version=VERSION,
        licence=LICENCE,
        modality=("MR",),
        groups=GROUPS,
        region=REGION,
        sampling={"mirror_axes": [0]},  # a left hippocampus mirrored is a right one
        training={
            "recipe": "slice3d train --recipe mr-hippocampus",
            "source": SOURCE,
            "licence": "CC BY-SA 4.0",
            "cases": sorted(case for held in folds for case in held),
            "held_out_by_fold": [list(held) for held in folds],
            "stages": [how.to_dict() for how in stages],
        },
        scores=scores,
        reliability=_reliability(scores),
        card=card_text(folds, scores),
    )


def _reliability(scores: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {"largest_field_of_view_mm": LARGEST_MM}
    if not scores:
        return limits
    return {**crossval.reliability(scores, per_structure=True), "volume_ml": crossval.volume_ranges(scores), **limits}


def card_text(folds: Sequence[Sequence[str]], scores: Mapping[str, Any]) -> str:
    """README.md of the package."""
    far = crossval.summary(scores, "hd95_mm")
    rows = [
        f"| {name} | {row['mean']:.3f} ± {row['sd']:.3f} | {row['median']:.3f} | {row['min']:.3f} | "
        + (f"{far[name]['mean']:.2f} |" if name in far else "– |")
        for name, row in crossval.summary(scores).items()
    ]
    cases = sorted(case for held in folds for case in held)
    return "\n".join(
        [
            "# mr-hippocampus", "",
            "Anterior and posterior hippocampus (`hippocampus` is both together) on T1-weighted MR, 1 mm, on crops around "
            f"one hippocampus. {len(folds)} small 3D U-Nets whose scores are averaged. Not a medical device: look at "
            "every outline before you use it.", "",
            f"## Scores in {len(folds)}-fold cross-validation", "",
            "Each case was segmented by the one network that was not trained on it. The average of all networks, which is "
            "what runs by default, cannot be scored on these cases; it should do no worse. The data set holds about two crops "
            "a person and does not say which: a fold may have seen the other side of a held-out brain, as in published "
            "cross-validations of this data set.", "",
            "| structure | Dice, mean ± sd | median | lowest | 95 % Hausdorff distance, mm |", "|---|---|---|---|---|",
            *rows, "", *([] if far else [WHILE_TRAINING, ""]), "## Case by case", "", *crossval.case_table(scores, folds), "",
            "## Trained on", "",
            f"{len(cases)} cases of {SOURCE}: adults, healthy or with a psychotic disorder. Licence of the data and, share "
            "alike, of these weights: CC BY-SA 4.0. Each is in the training set of all folds but one: "
            f"{', '.join(case.removeprefix('hippocampus_') for case in cases)}.", "",
            "## Where it does not apply", "",
            "Whole heads (it knows crops around one hippocampus), contrasts other than T1, voxels much larger than 1 mm, "
            "children, tumours, resections, severe atrophy: none were in the data.", "",
            "`docs/models.md` has the method and the pictures.", "",
        ]
    )  # fmt: skip
