"""The training loop on Lightning Fabric: mixed precision, exponential averaging, exact resume, several processes."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from slice3d.errors import InputError, MissingExtraError
from slice3d.models.loading import build_network
from slice3d.progress import Progress, silent
from slice3d.training.crops import CropDataset, Pool
from slice3d.training.group_norm import with_quick_gradients
from slice3d.training.heads import AuxiliaryHeads
from slice3d.training.losses import DeepSupervision, PartialDiceCE
from slice3d.training.settings import TrainSettings
from slice3d.training.structures import PARTIAL

log = logging.getLogger(__name__)

Crops = torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]
Validation = Callable[[torch.nn.Module], dict[str, float]]
CHECKPOINT = "last.ckpt"
HISTORY = "history.jsonl"
SETTINGS = "settings.json"
_FREE = ("validate_every", "save_every", "workers", "threads")
"""Settings that may differ when a run goes on: its weights do not depend on them."""


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine down to `lr_end`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr_end + (settings.lr - settings.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def averaged_network(checkpoint: Path, settings: TrainSettings) -> torch.nn.Module:
    """The network with the averaged weights of a checkpoint, without auxiliary heads, ready for inference."""
    network = build_network(settings.network, settings.arguments)
    network.load_state_dict(without_heads(torch.load(checkpoint, weights_only=True, map_location="cpu")["ema"]))
    return network.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload,no-any-return]


def without_heads(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the network inside `AuxiliaryHeads`, or the state itself."""
    inner = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
    return inner or state


def warm_start(checkpoint: Path, folder: Path) -> None:
    """Let a new run in `folder` begin with the averaged weights of `checkpoint`; a run already there is left alone."""
    if (folder / CHECKPOINT).exists():
        return
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    state["step"], state["model"] = 0, {k: v.clone() for k, v in state["ema"].items()}
    state["optimizer"]["state"] = {}
    _put(state, folder)


def begin_with(weights: Mapping[str, torch.Tensor], settings: TrainSettings, folder: Path) -> None:
    """Let a new run in `folder` begin with these weights of its network, auxiliary heads anew; a run already there is left
    alone.
    """
    if (folder / CHECKPOINT).exists():
        return
    network, optimizer = _new(settings)
    getattr(network, "network", network).load_state_dict(weights)
    model = network.state_dict()
    state = {
        "model": model,
        "optimizer": optimizer.state_dict(),
        "ema": {k: v.clone() for k, v in model.items()},
        "step": 0,
    }
    _put(state, folder)


def _new(settings: TrainSettings) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A network with the random weights of this seed, and what moves them."""
    torch.manual_seed(settings.seed)
    network = build_network(settings.network, settings.arguments)
    if settings.deep_supervision:
        network = AuxiliaryHeads(network)
    network = with_quick_gradients(network).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network, torch.optim.AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )


def _put(state: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{CHECKPOINT}.{os.getpid()}"  # each process of several writes the same
    torch.save(dict(state), part)
    part.replace(folder / CHECKPOINT)


@dataclass(frozen=True)
class Processes:
    """How many processes train together: devices on this node, nodes in all (as `torchrun` starts them)."""

    devices: int = 1
    nodes: int = 1


@contextmanager
def first_process_first(processes: Processes | None) -> Iterator[bool]:
    """Whether this is the first of several processes, which is through with what is inside before the others begin."""
    if processes is None or processes.devices * processes.nodes == 1:
        yield True
        return
    fabric = _fabric(None, None, processes)
    with fabric.rank_zero_first():
        yield fabric.is_global_zero


def fit(
    pool: Pool | Crops, settings: TrainSettings, folder: Path, *, validate: Validation | None = None,
    processes: Processes | None = None, stop_after: int | None = None, progress: Progress = silent,
) -> Path:  # fmt: skip
    """Train and return the path of the checkpoint (`model`, `ema`, `optimizer`, `step`).

    pool: cases to crop at random, or a map-style data set whose item n is crop n. Continues from `folder/last.ckpt` when it is there: crops, their augmentation and the learning rate depend on the
    step number only, so an interrupted run ends with the weights of an uninterrupted one. validate: called with the
    averaged network every `validate_every` steps, in the first process. stop_after: leave off at this step of the
    schedule. Raises `InputError` when the folder holds a run with other settings and when gradients become infinite.
    """
    torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    fabric = _fabric(settings, folder, processes or Processes())
    network, optimizer = fabric.setup(*_new(settings))
    average = {k: v.detach().clone() for k, v in network.module.state_dict().items()}
    state = {"model": network, "optimizer": optimizer, "ema": average, "step": 0}
    if (folder / CHECKPOINT).exists():
        fabric.load(folder / CHECKPOINT, state)
    _same_run(folder / SETTINGS, settings)
    fabric.barrier()
    if fabric.is_global_zero:
        _forget_after(folder / HISTORY, int(state["step"]))
        (folder / SETTINGS).write_text(json.dumps(settings.to_dict(), indent=1))
    loss_fn = DeepSupervision(PartialDiceCE(settings.classes, PARTIAL, weights=settings.class_weights))
    crops = CropDataset(pool, settings) if isinstance(pool, Pool) else pool
    batches = _batches(crops, settings, int(state["step"]), fabric.global_rank, fabric.world_size)
    started = time.monotonic()
    last = settings.steps if stop_after is None else min(settings.steps, stop_after)
    for step, (images, labels) in zip(range(int(state["step"]), last), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        images = fabric.to_device(images).to(memory_format=torch.channels_last_3d)
        loss = loss_fn(network(images), fabric.to_device(labels))
        fabric.backward(loss)
        norm = fabric.clip_gradients(network, optimizer, max_norm=settings.clip_gradient, error_if_nonfinite=False)
        # scaled float16 gradients overflow now and then: Fabric leaves such a step out
        if settings.precision != "16-mixed" and not math.isfinite(float(norm)):
            raise InputError(
                f"training broke down in step {step + 1}: gradients are not finite; begin anew in another folder with a lower "
                f"learning rate than {settings.lr:g}, and look for values far out of range in the images"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _average(state["ema"], network.module, min(settings.ema, (step + 1) / (step + 10)))
        state["step"] = step + 1
        _record(fabric, folder, {"step": step + 1, "loss": float(loss.detach()), "seconds": time.monotonic() - started})
        progress("training", (step + 1) / last)
        if (step + 1) % settings.save_every == 0 or step + 1 == last:
            _save(fabric, folder, state)
        if validate and (step + 1) % settings.validate_every == 0:
            _validate(fabric, folder, network.module, state["ema"], validate, step + 1)
    if validate and 0 < int(state["step"]) == last:  # also when a run was killed while it looked at its last weights
        _validate(fabric, folder, network.module, state["ema"], validate, last)
    return folder / CHECKPOINT


def _same_run(path: Path, settings: TrainSettings) -> None:
    """Raise `InputError` when the run at `path` has other settings: half of one schedule, half of another is neither."""
    if not path.exists():
        return
    now = json.loads(json.dumps(settings.to_dict()))
    # settings that are newer than the run were at their defaults
    defaults = json.loads(json.dumps(TrainSettings("", {}, {}, (1, 1, 1), (1.0, 1.0, 1.0), 1).to_dict()))
    stored = {**defaults, "augmentation": 1, **json.loads(path.read_text())}
    stored["augment"] = {**defaults["augment"], **stored["augment"]}
    for name, value in now.items():
        if name not in _FREE and stored[name] != value:
            raise InputError(
                f"the run in {path.parent} was begun with {name} = {stored[name]}, now it is {value}; "
                "go on with the same settings, or choose another folder"
            )


def _fabric(settings: TrainSettings | None, folder: Path | None, processes: Processes) -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise MissingExtraError("training needs Lightning Fabric; run `pip install 'slice3d[train]'`") from error

    several = processes.devices * processes.nodes > 1
    fabric = Fabric(
        devices=processes.devices,
        num_nodes=processes.nodes,
        # others wait while the first one prepares cases or validates: longer than the half hour that is usual
        strategy=DDPStrategy(timeout=timedelta(hours=12)) if several else "auto",
        precision=settings.precision if settings else None,  # type: ignore[arg-type]
        loggers=TensorBoardLogger(str(folder), name="tensorboard", version="") if folder else None,
    )
    fabric.launch()
    return fabric


def _forget_after(history: Path, step: int) -> None:
    """Drop the rows of steps that a resumed run will do again."""
    if history.exists():
        rows = [line for line in history.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
        history.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def _batches(
    dataset: Crops, settings: TrainSettings, start: int, rank: int, world: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches from step `start` on; process `rank` of `world` takes every world-th crop."""
    size = settings.batch_size
    numbers: Sequence[int] = [
        step * size * world + rank * size + n for step in range(start, settings.steps) for n in range(size)
    ]
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=size, sampler=numbers, num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None, persistent_workers=False,
    )  # fmt: skip
    return iter(loader)


@torch.no_grad()
def _average(average: dict[str, torch.Tensor], network: torch.nn.Module, decay: float) -> None:
    state = network.state_dict()
    moving = [name for name, value in state.items() if value.dtype.is_floating_point]
    torch._foreach_lerp_([average[name] for name in moving], [state[name] for name in moving], 1 - decay)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])


def _record(fabric: Any, folder: Path, row: dict[str, float]) -> None:
    if not fabric.is_global_zero:
        return
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    fabric.log_dict({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))


def _save(fabric: Any, folder: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: a run killed while saving resumes from the checkpoint before."""
    fabric.save(folder / (CHECKPOINT + ".part"), state)
    if fabric.is_global_zero:
        (folder / (CHECKPOINT + ".part")).replace(folder / CHECKPOINT)
    fabric.barrier()


def _validate(
    fabric: Any,
    folder: Path,
    network: torch.nn.Module,
    average: dict[str, torch.Tensor],
    validate: Validation,
    step: int,
) -> None:
    """Scores of the averaged weights, once for each step; the current ones are put back afterwards."""
    if fabric.is_global_zero and not _validated(folder / HISTORY, step):
        current = {k: v.detach().clone() for k, v in network.state_dict().items()}
        network.load_state_dict(average)
        network.eval()
        with torch.no_grad():
            scores = validate(network)
        network.train()
        network.load_state_dict(current)
        _record(fabric, folder, {"step": step, **scores})
    fabric.barrier()


def _validated(history: Path, step: int) -> bool:
    rows = (json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()) if history.exists() else ()
    return any(row["step"] == step and "loss" not in row for row in rows)
