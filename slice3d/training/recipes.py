"""The recipes of the shipped models, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slice3d.training.brain import train_brain
from slice3d.training.hippocampus import train_hippocampus
from slice3d.training.sarcoma import train_sarcoma
from slice3d.training.torso import Recipe, train_torso

RECIPES: dict[str, Callable[..., Path]] = {
    "ct-torso": train_torso,
    "mr-brain": train_brain,
    "mr-hippocampus": train_hippocampus,
    "mr-sarcoma": train_sarcoma,
}

BEGIN_WITH: dict[str, Callable[..., Any]] = {"ct-torso": Recipe}
"""Recipes that can begin with the networks of an earlier version, and what takes its folder as `start`."""
