"""The recipes of the shipped models, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slice3d.training.brain import train_brain
from slice3d.training.torso import train_torso

RECIPES: dict[str, Callable[..., Path]] = {"ct-torso": train_torso, "mr-brain": train_brain}
