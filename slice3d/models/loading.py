"""From a package's description and weights to a network ready to run. Only listed classes are ever built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slice3d.errors import ModelError
from slice3d.models.package import ModelPackage

if TYPE_CHECKING:
    import torch
    from torch import nn

_MONAI = "monai.networks.nets"
_OWN = "slice3d.models.unets"

ALLOWED = frozenset(
    {
        *(
            f"{_MONAI}.{name}"
            for name in (
                "AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "FlexibleUNet", "SegResNet",
                "SegResNetDS", "SwinUNETR", "UNet", "UNETR", "VNet",
            )
        ),
        f"{_OWN}.PlainConvUNet",
        f"{_OWN}.ResidualEncoderUNet",
        "slice3d.models.subpixel.SubpixelUNet",
    }
)  # fmt: skip


def build_network(class_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network with random weights. Raises `ModelError` for a class that is not listed or arguments it refuses."""
    if class_name not in ALLOWED:
        known = ", ".join(sorted(name.rpartition(".")[2] for name in ALLOWED))
        raise ModelError(f"network class {class_name!r} is not supported; expected one of {known}")
    module_name, _, cls = class_name.rpartition(".")
    module = importlib.import_module(module_name)
    try:
        network: nn.Module = getattr(module, cls)(**dict(arguments))
    except (MemoryError, RuntimeError) as error:
        raise ModelError(
            f"network {cls} of this description cannot be built here ({_line(error)[:80]}); the model is damaged, or needs "
            "more memory than there is"
        ) from error
    except (TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError) as error:
        raise ModelError(
            f"network {cls} refuses its description: {_line(error)}; the model does not fit this version"
        ) from error
    return network


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file. Raises `ModelError` when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"weights {path.name} cannot be read ({_line(error)}); add the model again") from error
    return tensors


def load_network(package: ModelPackage, fold: int = 0) -> nn.Module:
    """The network of one fold in float32 and evaluation mode; hash checked, nothing executed from the file.

    Raises `ModelError` when the weights do not match the hash or the architecture.
    """
    import torch

    package.verify_fold(fold)
    network = build_network(package.network_class, package.network_arguments)
    state = {key: t.float() if t.is_floating_point() else t for key, t in
             read_weights(package.folder / package.weights[fold].file).items()}  # fmt: skip
    own = network.state_dict()
    for key, tensor in state.items():
        if key in own and tensor.shape != own[key].shape:
            raise ModelError(
                f"weights of model {package.name!r} do not fit its network: {key} has shape {_shape(tensor)}, the network "
                f"has {_shape(own[key])}; expected both from one training; add it again"
            )
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(
            f"weights of model {package.name!r} do not fit its network: {_line(error)}; expected both from one training; add it again"
        ) from error
    # one tensor may carry several names, of which a file holds one; deep-supervision heads may be stored or left out
    filled = {own[key].data_ptr() for key in state if key in own}
    missing = [key for key in missing if own[key].data_ptr() not in filled and not _auxiliary(key)]
    unexpected = [key for key in unexpected if not _auxiliary(key)]
    if missing or unexpected:
        raise ModelError(
            f"weights of model {package.name!r} do not fit its network: {len(missing)} tensors missing, "
            f"{len(unexpected)} unexpected (first: {(missing + unexpected)[0]}); the package is damaged"
        )
    network.eval()
    network.requires_grad_(False)
    with torch.no_grad():
        if not all(finite(p) for p in network.parameters()):
            raise ModelError(f"weights of model {package.name!r} hold NaN or infinity; the package is damaged")
    return network


def finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    import torch

    # a sum is finite only when all terms are, and takes a fraction of the time; large terms may add up to infinity
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def write_weights(state: Mapping[str, torch.Tensor], path: Path, *, half: bool = False) -> None:
    """Store tensors as safetensors, each once however many names it has. half: floating ones as float16.

    Raises `ModelError` when a value does not survive (float16 holds ±65504).
    """
    import torch
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for key, tensor in state.items():
        identity = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        value = tensor.detach().cpu()
        kept[key] = (value.half() if half and value.is_floating_point() else value).clone().contiguous()
        if not bool(torch.isfinite(kept[key]).all()):
            raise ModelError(
                f"tensor {key} holds NaN, infinity or values too large for its format; the model is damaged"
            )
    save_file(kept, path, metadata={"format": "pt"})


@dataclass(frozen=True)
class Head:
    """The last, linear step of a network, per voxel: features · weightᵀ + bias. weight: (classes, features)."""

    weight: torch.Tensor
    bias: torch.Tensor


def split_head(network: nn.Module, *, fewer_than: int) -> Head | None:
    """Take a final 1×1×1 convolution off `network` (in place), so that averages can be taken over fewer channels.

    Averaging is linear, so applying the convolution after it changes nothing but rounding. Returns None, and leaves
    the network alone, when its last layer is something else or does not take fewer channels than `fewer_than`.
    """
    import torch
    from torch import nn

    found = last_convolution(network)
    if found is None:
        return None
    owner, name, layer = found
    if (
        not isinstance(layer, nn.Conv3d)
        or set(layer.kernel_size) != {1}
        or layer.groups != 1
        or set(layer.stride) != {1}
    ):
        return None
    if layer.in_channels >= fewer_than:
        return None
    weight = layer.weight.detach().flatten(1).float()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    setattr(owner, name, nn.Identity())
    return Head(weight, bias)


def last_convolution(network: nn.Module) -> tuple[Any, str, Any] | None:
    """Owner, name and layer that gives the scores; None for networks that are not known."""
    kind = type(network).__name__
    if kind in ("PlainConvUNet", "ResidualEncoderUNet"):
        layers = network.decoder.seg_layers  # type: ignore[union-attr]
        return layers, str(len(layers) - 1), layers[-1]  # type: ignore[arg-type, index]
    if kind == "DynUNet":
        block = network.output_block.conv  # type: ignore[union-attr]
        return block, "conv", block.conv  # type: ignore[union-attr]
    return None


def quicken(network: nn.Module) -> nn.Module:
    """Replace instance norms by group norms with one channel a group: the same mathematics, a faster kernel on CPUs.

    Only norms that use the image's own statistics are replaced; the network is changed in place and returned.
    """
    from torch import nn

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm3d) and not child.track_running_stats:
                norm = nn.GroupNorm(child.num_features, child.num_features, eps=child.eps, affine=child.affine)
                if child.affine:
                    norm.weight.data.copy_(child.weight.data)
                    norm.bias.data.copy_(child.bias.data)
                norm.requires_grad_(False)
                setattr(parent, name, norm.eval())
    return network


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "of one number"


def _auxiliary(key: str) -> bool:
    return any(part in key for part in ("heads.", "deep_supervision", "num_batches_tracked"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
