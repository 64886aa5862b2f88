"""A whole training run on somebody's data set: plan, prepare, fit, validate, export."""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slice3d.errors import InputError, ModelError
from slice3d.models.package import NAME
from slice3d.progress import Progress, silent
from slice3d.training.config import checked
from slice3d.training.dataset import Dataset, read_dataset
from slice3d.training.plan import Plan, make_plan
from slice3d.training.settings import (
    AugmentSettings,
    IntensitySettings,
    TrainSettings,
    check_hounsfield,
)

CASES = "cases.json"
_PLANNED = ("network", "arguments", "labels", "patch_size", "spacing_mm", "intensity", "augment", "context")
"""Settings that follow from the data, `[plan]` and `[augment]`."""
_LEAST = {"steps": 1, "batch_size": 1, "validate_every": 1, "save_every": 1, "threads": 1, "warmup": 0, "workers": 0,
          "seed": 0, "lr": 0, "lr_end": 0, "weight_decay": 0, "clip_gradient": 0, "ema": 0}  # fmt: skip
_WRONG_EDGE = 2
"""oneDNN 3.12 reads memory that nothing was written to in weight gradients of 3 × 3 × 3 bfloat16 convolutions of this depth."""
_PRECISIONS = ("bf16-mixed", "16-mixed", "32-true", "32", "bf16-true")


@dataclass(frozen=True)
class RunOptions:
    """What a configuration file may set; everything else is planned.

    validation: share of the cases held out (drawn with `seed`), at least one. budget_voxels: patch size limit.
    plan: fields of the plan to override. train, augment: fields of `TrainSettings` and `AugmentSettings`.
    synthesis: fields of `GeneratorSettings`, for runs on label maps alone.
    """

    name: str = ""
    version: str = "1.0.0"
    validation: float = 0.2
    held_out: tuple[str, ...] = ()
    budget_voxels: int = 96**3
    features: int = 16
    seed: int = 0
    plan: Mapping[str, Any] | None = None
    train: Mapping[str, Any] | None = None
    augment: Mapping[str, Any] | None = None
    synthesis: Mapping[str, Any] | None = None


def read_config(path: Path | None) -> RunOptions:
    """Options from a TOML file. Raises `InputError` naming the key that is not known."""
    if path is None:
        return RunOptions()
    tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no configuration file {path.name}; leave --config out to use the plan") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read as a file ({error.strerror}); expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not valid TOML: {error}") from error
    options = RunOptions(**checked(raw, RunOptions, path.name))
    checked(options.train or {}, TrainSettings, f"{path.name} [train]", without=_PLANNED)
    checked(options.augment or {}, AugmentSettings, f"{path.name} [augment]")
    checked(options.plan or {}, Plan, f"{path.name} [plan]")
    checked((options.plan or {}).get("intensity", {}), IntensitySettings, f"{path.name} [plan.intensity]")
    for name, least in (("features", 1), ("budget_voxels", 1), ("validation", 0), ("seed", 0)):
        if not getattr(options, name) >= least:
            raise InputError(f"{path.name} sets {name} to {getattr(options, name)}; expected at least {least}")
    if options.validation >= 1:
        raise InputError(f"{path.name} sets validation to {options.validation}; expected a share below 1")
    if options.name and not NAME.fullmatch(options.name):
        raise InputError(
            f"{path.name} sets name to {options.name!r}; expected letters, digits, '.', '_' and '-', at most 100"
        )
    return options


def plan_dataset(dataset: Dataset, options: RunOptions, *, progress: Progress = silent) -> Plan:
    """Fingerprint the cases and plan, with the configuration's overrides."""
    from slice3d.training.prepare import fingerprints

    plan = make_plan(
        fingerprints(dataset, progress=progress),
        dataset.labels,
        modality=dataset.modality,
        budget_voxels=options.budget_voxels,
        features=options.features,
    )
    changes = checked(options.plan or {}, Plan, "[plan]")
    if "intensity" in changes:
        changes["intensity"] = IntensitySettings(**checked(changes["intensity"], IntensitySettings, "[plan.intensity]"))
        if changes["intensity"].scheme not in ("clip_zscore", "zscore"):
            raise InputError(
                f"[plan.intensity] sets scheme to {changes['intensity'].scheme!r}; expected 'clip_zscore' (CT) or 'zscore'"
            )
    return replace(plan, **changes)


def settings_for(plan: Plan, labels: Mapping[int, str], options: RunOptions) -> TrainSettings:
    """The settings of a run of this plan. Raises `InputError` for values that no run can have."""
    from slice3d.models.loading import build_network

    defaults: dict[str, Any] = {"steps": 1000, "batch_size": 2, "lr": 1e-3, "seed": options.seed}
    given = checked(options.train or {}, TrainSettings, "[train]", without=_PLANNED)
    changes = checked(options.augment or {}, AugmentSettings, "[augment]")
    for name, least in _LEAST.items():
        if given.get(name, least) < least:
            raise InputError(f"[train] sets {name} to {given[name]}; expected {least} or more")
    if given.get("ema", 0) >= 1:
        raise InputError(f"[train] sets ema to {given['ema']}; expected a share below 1")
    if given.get("precision", "bf16-mixed") not in _PRECISIONS:
        raise InputError(f"[train] sets precision to {given['precision']!r}; expected one of {', '.join(_PRECISIONS)}")
    if not min(plan.spacing_mm) > 0:
        raise InputError(f"[plan] sets spacing_mm to {list(plan.spacing_mm)}; expected mm above 0")
    if not set(changes.get("flip_axes", ())) <= {0, 1, 2}:
        raise InputError(f"[augment] sets flip_axes to {list(changes['flip_axes'])}; expected axes 0, 1 and 2")
    try:
        build_network(plan.network, plan.arguments)
        levels = np.cumprod([np.broadcast_to(s, 3) for s in plan.arguments.get("strides", (1,))], axis=0)
    except (ModelError, TypeError, ValueError) as error:
        raise InputError(
            f"[plan] asks for a network that can't be built ({error}); leave network and arguments out"
        ) from error
    steps = levels[-1]
    if any(n < 1 or n % int(s) for n, s in zip(plan.patch_size, steps, strict=True)):
        raise InputError(
            f"a patch of {' × '.join(map(str, plan.patch_size))} voxels doesn't fit the network; expected multiples of "
            f"{' × '.join(str(int(s)) for s in steps)}"
        )
    bfloat16 = str(given.get("precision", "bf16-mixed")).startswith("bf16")
    if bfloat16 and any(plan.patch_size[0] == _WRONG_EDGE * int(step) for step in levels[:, 0]):
        raise InputError(
            f"a patch of {' × '.join(map(str, plan.patch_size))} voxels leaves {_WRONG_EDGE} along the first axis at a "
            f"level of the network, where gradients in bfloat16 are wrong on CPUs; expected {_WRONG_EDGE + 1} or more: a "
            'larger patch, fewer strides or precision = "32-true"'
        )
    tables = ((changes, "organs", float), (changes, "marrow", float), (changes, "lesions", int),
              (given, "class_weights", float))  # fmt: skip
    for where, name, kind in tables:
        if name in where:
            where[name] = _by_label(where[name], kind, name, labels)
    too_often = {k: v for k, v in changes.get("marrow", {}).items() if v > 1}
    if too_often:
        raise InputError(f"marrow of label {min(too_often)} is {too_often[min(too_often)]}; expected a share up to 1")
    for name, unit, most in (("turn_deg", "degrees", 180), ("deform_mm", "millimetres", 50)):
        value = changes.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
            raise InputError(f"{name} is {value!r}; expected {unit} from 0 to {most:g}")
    augment = AugmentSettings(**{"cut_field_of_view": 0.0, **changes})
    check_hounsfield(augment, plan.intensity)
    return TrainSettings(
        network=plan.network,
        arguments=plan.arguments,
        labels=labels,
        patch_size=plan.patch_size,
        spacing_mm=plan.spacing_mm,
        intensity=plan.intensity,
        augment=augment,
        **{**defaults, **given},
    )


def _by_label(raw: Any, kind: type, name: str, labels: Mapping[int, str]) -> dict[int, Any]:
    """Label → value; TOML has text for keys."""
    try:
        if any(isinstance(value, bool) for value in raw.values()):
            raise ValueError("a truth value is no number")
        found = {int(label): kind(value) for label, value in raw.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{name} is {raw!r}; expected a table of label numbers and numbers, e.g. 1 = 2") from None
    asked = {*found, *(found.values() if kind is int else ())}
    if not asked <= set(labels):
        raise InputError(f"{name} names label {min(asked - set(labels))}; the data set has {sorted(labels)}")
    odd = [value for value in found.values() if not (0 < value < math.inf)]
    if kind is float and odd:
        raise InputError(f"{name} has {odd[0]}; expected numbers above 0")
    return found


def split(names: Sequence[str], options: RunOptions) -> tuple[list[str], list[str]]:
    """(training, held-out) case names; the draw depends on the seed alone."""
    unknown = sorted(set(options.held_out) - set(names))
    if unknown:
        raise InputError(f"held-out case {unknown[0]!r} is not in the data set; it has {', '.join(names[:5])} …")
    held = list(options.held_out)
    if not held:
        count = max(1, round(options.validation * len(names)))
        order = np.random.default_rng(options.seed).permutation(len(names))
        held = sorted(names[n] for n in order[:count])
    rest = [n for n in names if n not in held]
    if not rest:
        raise InputError(f"{len(names)} case(s), all held out; expected at least two cases")
    return rest, held


def remember_cases(out: Path, training: Sequence[str], held: Sequence[str]) -> None:
    """Write which cases a run draws from, or raise `InputError` when the run in `out` was begun with others."""
    from slice3d.training.loop import CHECKPOINT

    now = {"cases": list(training), "held_out": list(held)}
    path = out / CASES
    before = _cases_of(out) if (out / CHECKPOINT).exists() else None
    if before is not None and sorted(before["held_out"]) != sorted(now["held_out"]):
        raise InputError(
            f"the run in {out} was begun with {', '.join(before['held_out'])} held out, now {', '.join(now['held_out'])} would be; "
            f"what was trained on can't be held out: set held_out = {json.dumps(before['held_out'])}, or choose another folder"
        )
    if before is not None and sorted(before["cases"]) != sorted(now["cases"]):
        other = sorted(set(before["cases"]) ^ set(now["cases"]))[0]
        raise InputError(
            f"the run in {out} was begun with {len(before['cases'])} cases to train on, now there are {len(now['cases'])} "
            f"({other} is in one of both); go on with the data set that it was begun with, or choose another folder"
        )
    if before is None or not path.exists():
        part = path.with_name(CASES + ".part")
        part.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def _cases_of(out: Path) -> dict[str, list[str]] | None:
    """Which cases the run in `out` draws from, by its own account or, where it is older than that, its package's."""
    own, package = out / CASES, out / "package" / "model.json"
    path = own if own.exists() else package
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found if path == own else found["training"]
        return {"cases": list(found["cases"]), "held_out": list(found["held_out"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; expected the names of the run's cases; choose another folder") from error


def made(out: Path) -> Path:
    """The folder of a run, there or made. Raises `InputError` where none can be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} can't be a folder ({error.strerror}); choose another --out") from error
    return out


def train_dataset(
    folder: Path, out: Path, options: RunOptions, *, report: Callable[[str], None] = lambda line: None,
    processes: Any = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Train on an MSD or nnU-Net raw data set and return the exported package's folder, `out/package`.

    `out` also holds `cases.json`, the cached cases, `history.jsonl`, TensorBoard logs, `learning-curves.png` and
    `validation.json`, scores of the held-out cases as the package segments their files. An interrupted run goes on where
    it was. report: gets the plan and results line by line.
    Raises `InputError` for a data set or configuration that cannot be used.
    """
    from slice3d.training.cases import load_case
    from slice3d.training.crops import Pool
    from slice3d.training.finish import CACHE, Run, finish
    from slice3d.training.loop import first_process_first, fit
    from slice3d.training.prepare import prepare
    from slice3d.training.validate import WholeVolumes

    dataset = read_dataset(folder)
    plan = plan_dataset(dataset, options, progress=progress)
    settings = settings_for(plan, dataset.labels, options)
    training, held = split([pair.name for pair in dataset.pairs], options)
    for line in run_lines(plan, settings, training, held):
        report(line)
    with first_process_first(processes) as first:
        if first:
            remember_cases(made(out), training, held)
        cache = prepare(dataset, plan, out / CACHE, progress=progress)
    validation = WholeVolumes([load_case(cache, name) for name in held], settings)
    checkpoint = fit(
        Pool({cache: 1.0}, without=held), settings, out, validate=validation, processes=processes, progress=progress
    )
    with first_process_first(processes) as first:
        if not first:
            return out / "package"
        run = Run(package_name(options, dataset), options.version, dataset, settings, training, held, out)
        return finish(run, checkpoint, report=report, progress=progress)


def package_name(options: RunOptions, dataset: Dataset) -> str:
    """The configuration's, or the data set's in letters that a package may have."""
    plain = unicodedata.normalize("NFKD", dataset.name).encode("ascii", "ignore").decode()
    usable = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).lstrip("._-")[:100].rstrip("-")
    return options.name or usable or "model"


def run_lines(plan: Plan, settings: TrainSettings, training: Sequence[str], held: Sequence[str]) -> list[str]:
    """The plan of a whole run in words."""
    return [
        *plan.lines(),
        f"structures {', '.join(settings.labels.values())}",
        f"cases      {len(training)} to train on, {len(held)} held out: {', '.join(held)}",
        f"steps      {settings.steps}, {settings.batch_size} patches each, learning rate from {settings.lr:g}",
    ]
