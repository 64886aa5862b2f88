"""The recipe of `ct-torso`: cases, synthesis, four stages, the last two without each held-out case in turn, the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.annotate import Checked, refine
from slice3d.training.bones import SEEN, whole_bones
from slice3d.training.cases import Case
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings
from slice3d.training.structures import CONTEXT, LABELS, VALUES
from slice3d.training.torso_pool import COARSE_MM, FINE_MM, MIDDLE_MM, OUTLINES_MM, WORKING_MM, prepare_pool

if TYPE_CHECKING:
    from slice3d.models.package import ModelPackage

HELD_OUT = ("s0009", "spl")
COARSE_MIX = {"coarse/labelled": 0.12, "coarse/confirmed": 0.30, "coarse/synth": 0.50, "coarse/phantom": 0.08}
MIDDLE_MIX = {"middle/labelled": 0.18, "middle/confirmed": 0.32, "middle/synth": 0.38, "middle/phantom": 0.12}
FINE_MIX = {"fine/labelled": 0.18, "fine/confirmed": 0.32, "fine/synth": 0.38, "fine/phantom": 0.12}
"""How often each kind of case is drawn: folders of the pool and their shares, at the three sizes of voxels."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything.

    start: name or folder of an earlier version's package, whose networks the last stage begins with; the stages before are left out.
    """

    synthetic: int = 143
    phantoms: int = 48
    coarse_steps: int = 5500
    middle_steps: int = 10000
    fine_steps: int = 8000
    again_steps: int = 6000
    held_out: tuple[str, ...] = HELD_OUT
    workers: int = 0
    threads: int = 1
    start: Path | None = None


_NETWORK: dict[str, Any] = {
    "network": "slice3d.models.subpixel.SubpixelUNet",
    "arguments": {
        "in_channels": 1, "out_channels": len(LABELS) + 1, "filters": [32, 64, 128, 256],
        "context": len(CONTEXT), "context_of": VALUES["body"],
    },
    "labels": LABELS,
    "context": CONTEXT,
    "deep_supervision": True,
    "class_weights": {VALUES["liver_tumor"]: 8.0},
}  # fmt: skip
_PHASE_HU = {"liver": 20, "spleen": 25, "kidney_left": 45, "kidney_right": 45, "lung_left": 20, "lung_right": 20, "bone": 30,
             "aorta": 60, "liver_tumor": 5, "heart": 40, "gut": 25, "vessel": 40, "muscle": 8, "other": 20}  # fmt: skip
_AUGMENT = AugmentSettings(
    cut_field_of_view=0.2, low_resolution=0.1, rotate_deg=10, turn_deg=25, scale=0.18, deform_mm=10,
    organs={VALUES[name]: hu / IntensitySettings().std for name, hu in _PHASE_HU.items()},
    lesions={VALUES["liver"]: VALUES["liver_tumor"]}, marrow={VALUES["bone"]: 0.4},
)  # fmt: skip
_NARROW = replace(_AUGMENT, cut_field_of_view=0.35)
"""Narrow fields of view are common in what people send."""


def coarse_settings(recipe: Recipe) -> TrainSettings:
    """4.5 mm voxels: less than half of the work per step while the network learns where organs are."""
    return TrainSettings(
        **_NETWORK, patch_size=(80, 64, 64), spacing_mm=COARSE_MM, steps=recipe.coarse_steps, augment=_AUGMENT,
        workers=recipe.workers, threads=recipe.threads, lr=1.5e-3, lr_end=2e-4, validate_every=1000,
    )  # fmt: skip


def middle_settings(recipe: Recipe) -> TrainSettings:
    """3.2 mm voxels: half of the work per step of the fine ones, and done once, not for each held-out case."""
    return TrainSettings(
        **_NETWORK, patch_size=(96, 64, 64), spacing_mm=MIDDLE_MM, steps=recipe.middle_steps, augment=_NARROW,
        workers=recipe.workers, threads=recipe.threads, lr=1e-3, lr_end=2e-4, warmup=60, ema=0.995, seed=3,
        validate_every=1000,
    )  # fmt: skip


def fine_settings(recipe: Recipe) -> TrainSettings:
    """2.5 mm voxels."""
    return TrainSettings(
        **_NETWORK, patch_size=(112, 80, 80), spacing_mm=FINE_MM, steps=recipe.fine_steps, augment=_NARROW,
        workers=recipe.workers, threads=recipe.threads, lr=8e-4, lr_end=1e-5, warmup=60, ema=0.995, seed=5,
        validate_every=1000,
    )  # fmt: skip


def again_settings(recipe: Recipe) -> TrainSettings:
    """2.5 mm voxels once more: the learning rate back up, other crops, more of them noisy or coarse, and down to nothing.

    Crop n follows from the seed: a version that begins with networks which this very stage made needs another.
    """
    worse = replace(_NARROW, noise=0.25, low_resolution=0.2)
    return replace(fine_settings(recipe), steps=recipe.again_steps, augment=worse, seed=6, validate_every=2000)


def guessed_outlines(
    checkpoint: Path, settings: TrainSettings, data: Path, checked: Mapping[str, Checked]
) -> list[Case]:
    """A network's outlines on the CTs without labels, as `checked` has them refined: to be looked at, then stored.

    The network sees voxels of `settings.spacing_mm`; the cases are those of `outlines/ruled`, on the grid of `OUTLINES_MM`.
    """
    from slice3d.training.loop import averaged_network
    from slice3d.training.validate import probabilities

    network = averaged_network(checkpoint, settings)
    found = []
    for name, confirmed in checked.items():
        seen, whole = (cases.unlabelled_case(data, name, spacing_mm=mm) for mm in (settings.spacing_mm, OUTLINES_MM))
        shares = probabilities(network, seen.image, settings, overlap=0.4).numpy()
        box = cases.body_box(whole)
        moved = np.stack([cases.onto(share, seen.spacing_mm, whole.image.shape, OUTLINES_MM)[box] for share in shares])
        case = cases.cropped_to_body(whole)
        refined = refine(case, moved, confirmed)
        found.append(replace(refined, labels=whole_bones(refined, moved, SEEN[name])))
    return found


def train_torso(
    data: Path, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    recipe: Recipe | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder. Each part goes on where an interrupted run left it.

    The first two stages see no held-out case; the third and fourth are run once without each of them. All these networks
    ship, as the folds of one package: each held-out case can be scored by the one network that never saw it. Where the last
    stage begins with an earlier version, the mean of its first and last weights ships (Wortsman et al. 2022, arXiv:2109.01903).

    Raises `InputError` where `recipe.start` is not a package of this recipe with the same cases held out, in the same order,
    and where the run in `out` began otherwise.
    """
    from slice3d.training.card import VERSION, package_facts
    from slice3d.training.crops import Pool
    from slice3d.training.curves import draw_stages
    from slice3d.training.export import export, training_weights
    from slice3d.training.loop import CHECKPOINT, averaged_network, begin_with, first_process_first, fit, warm_start
    from slice3d.training.validate import WholeVolumes

    recipe = recipe or Recipe()
    if not recipe.held_out:
        raise InputError("no held-out case; expected at least one: each network of the package leaves one out")
    coarse, middle, fine = coarse_settings(recipe), middle_settings(recipe), fine_settings(recipe)
    again = again_settings(recipe)
    earlier = _earlier(recipe.start, recipe.held_out) if recipe.start is not None else None
    begun_with = {"version": earlier.version, "sha256": earlier.sha256} if earlier else None
    pool = out / f"pool-{VERSION}"  # other versions label the same cases in another way
    _begins_alike(out, begun_with)
    with first_process_first(processes) as first:
        prepare_pool(
            data, pool, synthetic=recipe.synthetic, phantoms=recipe.phantoms, coarser=earlier is None, progress=progress
        )
        if first:
            _leave_word(out, begun_with)
    if earlier:
        before = f"from the networks of {earlier.name} {earlier.version}: "
    else:
        before = (
            f"{coarse.steps} steps at {COARSE_MM[0]} mm, {middle.steps} at {MIDDLE_MM[0]} mm, then {fine.steps} and "
        )
    report(f"{before}{again.steps} steps at {FINE_MM[0]} mm without each of {', '.join(recipe.held_out)}")

    def train(name: str, how: TrainSettings, mix: Mapping[str, float], without: tuple[str, ...]) -> Path:
        drawn = Pool({pool / group: weight for group, weight in mix.items()}, without=without)
        labelled = next(group for group in mix if group.endswith("/labelled"))
        watched = [cases.load_case(pool / labelled, held) for held in without]
        watch = WholeVolumes(watched, how) if watched else None
        return fit(drawn, how, out / name, validate=watch, processes=processes, progress=progress)

    stages = [f"without-{recipe.held_out[0]}-again"]
    shared = out / "middle" / CHECKPOINT
    if earlier is None:
        warm_start(train("coarse", coarse, COARSE_MIX, recipe.held_out), shared.parent)
        train("middle", middle, MIDDLE_MIX, recipe.held_out)
        stages = ["coarse", "middle", f"without-{recipe.held_out[0]}", *stages]
    last = []
    for fold, name in enumerate(recipe.held_out):
        began = training_weights(earlier, fold, again) if earlier else {}
        if earlier:
            begin_with(began, again, out / f"without-{name}-again")
        else:
            warm_start(shared, out / f"without-{name}")
            once = train(f"without-{name}", fine, FINE_MIX, (name,))
            warm_start(once, out / f"without-{name}-again")
        ended = train(f"without-{name}-again", again, FINE_MIX, (name,))
        if earlier:
            trained = averaged_network(ended, again).state_dict()
            mean = {key: (value + began[key]) / 2 for key, value in trained.items()}
            begin_with(mean, again, out / f"without-{name}-mean")  # a checkpoint, for export; nothing goes on from it
            ended = out / f"without-{name}-mean" / CHECKPOINT
        last.append(ended)
    with first_process_first(processes) as first:
        if not first:
            return out / "package"
        draw_stages([out / stage for stage in stages], out / "learning-curves.png")
        facts = package_facts(recipe.held_out, begun_with=begun_with)
        return export(last, replace(again, spacing_mm=WORKING_MM), facts, out / "package")


def _earlier(start: Path, held_out: tuple[str, ...]) -> ModelPackage:
    """An earlier version, whose networks must have seen nothing of what is held out of them here, and no other cases."""
    from slice3d.models import registry
    from slice3d.training.card import LICENCE, training_facts

    package = registry.package(str(start))
    found = f"{start} holds {package.name!r} {package.version}"
    if package.name != "ct-torso" or package.licence != LICENCE:
        raise InputError(f"{found}, {package.licence}; expected an earlier ct-torso, {LICENCE}")
    told = package.description.get("training")
    theirs = told if isinstance(told, dict) else {}
    if theirs.get("held_out_by_fold") != [[name] for name in held_out] or len(package.weights) != len(held_out):
        raise InputError(
            f"{found}, {len(package.weights)} networks that were not trained on {theirs.get('held_out_by_fold', 'unknown')}; "
            f"expected one without each of {', '.join(held_out)}, in this order"
        )
    known = training_facts(held_out)
    for use in ("labelled", "label_maps_for_synthesis", "pseudo_labelled"):
        if others := sorted(set(theirs.get(use, ())) - set(known[use])):
            raise InputError(f"{found}, trained on {', '.join(others)} as well; this recipe cannot account for that")
    # up to 0.6.0 no structure was weighted, so that nothing was taken off that training could put back
    if _numbers(package.version) < (0, 7):
        raise InputError(f"{found}; expected version 0.7.0 or later")
    return package


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


_WORD = "begun-with.json"


def _begins_alike(out: Path, begun_with: Mapping[str, str] | None) -> None:
    """Raise `InputError` when the run in `out` began with other networks."""
    if not (out / _WORD).exists():
        return
    there = json.loads((out / _WORD).read_text(encoding="utf-8"))
    if there != begun_with:
        was, now = (f"version {b['version']} ({b['sha256'][:12]}…)" if b else "nothing" for b in (there, begun_with))
        raise InputError(f"the run in {out} began with {was}, this one would with {now}; choose another folder for it")


def _leave_word(out: Path, begun_with: Mapping[str, str] | None) -> None:
    part = out / f"{_WORD}.part"
    part.write_text(json.dumps(begun_with) + "\n", encoding="utf-8")
    part.replace(out / _WORD)
