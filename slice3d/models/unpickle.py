"""Reading PyTorch checkpoints without running anything in them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.errors import ModelError

if TYPE_CHECKING:
    import torch


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The contents of a `.pth`/`.pt` file: tensors, numbers, text and containers, nothing else.

    torch's restricted unpickler, with an explicit list of what else nnU-Net stores (numpy numbers in its log). Anything
    beyond it, be it an attack or just an unusual checkpoint, is refused before it is built. Raises `ModelError`.
    """
    import torch

    if not path.is_file():
        raise ModelError(f"no checkpoint {path.name}; expected the file that training wrote")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickle protocols, which are refused or read
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_refused(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        text = "" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        text = "it is empty" if path.stat().st_size == 0 else text or type(error).__name__
        raise ModelError(
            f"{path.name} is not a readable PyTorch checkpoint ({text}); download or copy it again"
        ) from error
    if not isinstance(found, Mapping):
        raise ModelError(f"{path.name} holds {type(found).__name__}; expected a dictionary with the network's weights")
    return found


def _numpy_numbers() -> list[Any]:
    import numpy as np
    from numpy._core import multiarray

    kinds = ("Float64DType", "Float32DType", "Float16DType", "Int64DType", "Int32DType", "UInt8DType", "BoolDType")
    # checkpoints written by numpy 1 name the function's old home
    scalar = multiarray.scalar
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(getattr(np.dtypes, kind) for kind in kinds),
    ]


def _refused(path: Path, error: BaseException) -> str:
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"`([\w.]+)`", text)
    if named and named[1] != "weights_only":
        return (
            f"{path.name} wants to use {named.group(1)!r}, which weights have no need of; nothing was run; "
            "get the model from its publisher"
        )
    return f"{path.name} is a pickle that cannot be read without running it; nothing was run; get the model from its publisher"


def tensors_of(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """The name → tensor dictionary in `state`. Raises `ModelError` when it is something else."""
    import torch

    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{path.name} holds no dictionary of tensors; expected the weights of a network")
    # training under several GPUs or torch.compile prefixes every name
    prefixes = ("module.", "_orig_mod.")
    out = {str(key): value for key, value in state.items()}
    for prefix in prefixes:
        if all(key.startswith(prefix) for key in out):
            out = {key.removeprefix(prefix): value for key, value in out.items()}
    return out
