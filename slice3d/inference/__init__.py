"""Running a model package on a study: `predict` for one case, `Engine` for many with the weights kept warm."""

from slice3d.inference.engine import Engine, engine_for, predict
from slice3d.inference.estimate import Estimate, estimate
from slice3d.inference.settings import InferenceSettings

__all__ = ["Engine", "Estimate", "InferenceSettings", "engine_for", "estimate", "predict"]
