"""The recipe of `ct-torso`: cases, synthesis, three stages, the last one without each held-out case in turn, the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slice3d.errors import InputError
from slice3d.progress import Progress, silent
from slice3d.training import cases
from slice3d.training.annotate import Checked, refine
from slice3d.training.bones import SEEN, whole_bones
from slice3d.training.cases import Case
from slice3d.training.settings import AugmentSettings, IntensitySettings, TrainSettings
from slice3d.training.structures import CONTEXT, LABELS, VALUES
from slice3d.training.torso_pool import COARSE_MM, FINE_MM, SHARP_MM, prepare_pool

HELD_OUT = ("s0009", "spl")
COARSE_MIX = {"coarse/labelled": 0.12, "coarse/confirmed": 0.26, "coarse/ruled": 0.06, "coarse/synth": 0.50,
              "coarse/phantom": 0.06}  # fmt: skip
LONG_MIX = {"fine/labelled": 0.14, "fine/confirmed": 0.38, "fine/synth": 0.36, "fine/phantom": 0.12}
FINAL_MIX = {"sharp/labelled": 0.12, "sharp/confirmed": 0.22, "fine/labelled": 0.08, "fine/confirmed": 0.14,
             "fine/synth": 0.30, "fine/phantom": 0.14}  # fmt: skip
"""How often each kind of case is drawn, in the three stages: folders of the pool and their shares."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything."""

    synthetic: int = 143
    phantoms: int = 48
    coarse_steps: int = 5500
    long_steps: int = 9000
    final_steps: int = 16000
    held_out: tuple[str, ...] = HELD_OUT
    workers: int = 0
    threads: int = 1


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


def coarse_settings(recipe: Recipe) -> TrainSettings:
    """4.5 mm voxels: less than half of the work per step while the network learns where organs are."""
    return TrainSettings(
        **_NETWORK, patch_size=(80, 64, 64), spacing_mm=COARSE_MM, steps=recipe.coarse_steps, augment=_AUGMENT,
        workers=recipe.workers, threads=recipe.threads, lr=1.5e-3, lr_end=2e-4, validate_every=1000,
    )  # fmt: skip


def long_settings(recipe: Recipe) -> TrainSettings:
    """3 mm voxels: where its borders are. Narrow fields of view are common in what people send."""
    return TrainSettings(
        **_NETWORK, patch_size=(112, 80, 80), spacing_mm=FINE_MM, steps=recipe.long_steps,
        augment=replace(_AUGMENT, cut_field_of_view=0.35), workers=recipe.workers, threads=recipe.threads, lr=8e-4,
        lr_end=1e-4, warmup=60, ema=0.995, seed=5, validate_every=1000,
    )  # fmt: skip


def final_settings(recipe: Recipe) -> TrainSettings:
    """2.5 mm, at which the package runs, with more of the labelled scans; the learning rate falls to nothing.

    What the pool holds at 3 mm is taken for patients a sixth smaller; painting it anew at 2.5 mm was not tried.
    """
    return replace(
        long_settings(recipe), spacing_mm=SHARP_MM, steps=recipe.final_steps, lr=1e-3, lr_end=1e-5, warmup=20, seed=7
    )


def guessed_outlines(
    checkpoint: Path, settings: TrainSettings, pool: Path, checked: Mapping[str, Checked]
) -> list[Case]:
    """A network's outlines on the CTs without labels, as `checked` has them refined: to be looked at, then stored."""
    from slice3d.training.loop import averaged_network
    from slice3d.training.validate import probabilities

    if settings.spacing_mm != FINE_MM:
        raise InputError(
            f"a network of {settings.spacing_mm} mm; expected one of {FINE_MM} mm, as the outlines are (long_settings)"
        )
    network = averaged_network(checkpoint, settings)
    found = []
    for name, confirmed in checked.items():
        case = cases.load_case(pool / "fine" / "ruled", name)
        shares = probabilities(network, case.image, settings, overlap=0.4).numpy()
        refined = refine(case, shares, confirmed)
        found.append(replace(refined, labels=whole_bones(refined, shares, SEEN[name])))
    return found


def train_torso(
    data: Path, out: Path, *, report: Callable[[str], None] = lambda line: None, processes: Any = None,
    recipe: Recipe | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Run the recipe and return the package's folder. Each part goes on where an interrupted run left it.

    The first two stages see no held-out case; the last one is run once without each of them. All these networks ship, as
    the folds of one package: each held-out case can be scored by the one network that never saw it.
    """
    from slice3d.training.card import VERSION, package_facts
    from slice3d.training.crops import Pool
    from slice3d.training.curves import draw_stages
    from slice3d.training.export import export
    from slice3d.training.loop import fit, warm_start
    from slice3d.training.validate import WholeVolumes

    recipe = recipe or Recipe()
    if not recipe.held_out:
        raise InputError("no held-out case; expected at least one: each network of the package leaves one out")
    pool = out / f"pool-{VERSION}"  # other versions label the same cases in another way
    prepare_pool(data, pool, synthetic=recipe.synthetic, phantoms=recipe.phantoms, progress=progress)
    coarse, long, final = (make(recipe) for make in (coarse_settings, long_settings, final_settings))
    report(
        f"{coarse.steps} steps at {COARSE_MM[0]} mm, {long.steps} at {FINE_MM[0]} mm, then {final.steps} at {SHARP_MM[0]} mm without each "
        f"of {', '.join(recipe.held_out)}"
    )

    def train(name: str, how: TrainSettings, mix: Mapping[str, float], without: tuple[str, ...]) -> Path:
        drawn = Pool({pool / group: weight for group, weight in mix.items()}, without=without)
        labelled = next(group for group in mix if group.endswith("/labelled"))
        watched = [cases.load_case(pool / labelled, held) for held in without]
        watch = WholeVolumes(watched, how) if watched else None
        return fit(drawn, how, out / name, validate=watch, processes=processes, progress=progress)

    first = train("coarse", coarse, COARSE_MIX, recipe.held_out)
    warm_start(first, out / "long")
    second = train("long", long, LONG_MIX, recipe.held_out)
    last = []
    for name in recipe.held_out:
        warm_start(second, out / f"without-{name}")
        last.append(train(f"without-{name}", final, FINAL_MIX, (name,)))
    draw_stages([out / "coarse", out / "long", out / f"without-{recipe.held_out[0]}"], out / "learning-curves.png")
    return export(last, final, package_facts(recipe.held_out), out / "package")
