"""nnU-Net v2's two U-Nets, for inference: plain and residual encoder (Isensee et al. 2021 and 2024).

Parameters carry the names they have in nnU-Net's checkpoints, so that a state dictionary loads as it is. Written for
this project from the published architecture; there is no training code and no deep supervision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from slice3d.errors import ModelError

Sizes = Sequence[int]
Triple = tuple[int, int, int]

_LAYERS: Mapping[str, type[nn.Module]] = {
    "Conv3d": nn.Conv3d,
    "InstanceNorm3d": nn.InstanceNorm3d,
    "BatchNorm3d": nn.BatchNorm3d,
    "LeakyReLU": nn.LeakyReLU,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Dropout3d": nn.Dropout3d,
}


def _layer(name: str | None) -> type[nn.Module] | None:
    """The layer class that plans name (`"torch.nn.modules.conv.Conv3d"`). Raises `ModelError` for any other."""
    if name is None:
        return None
    module, _, kind = str(name).rpartition(".")
    if module.split(".")[:2] != ["torch", "nn"] or kind not in _LAYERS:
        raise ModelError(
            f"the network uses the layer {str(name)[:60]!r}; expected one of {', '.join(_LAYERS)} of torch.nn"
        )
    return _LAYERS[kind]


class _Style:
    """How every convolution of a network is dressed: bias, norm, activation."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        if _layer(arguments.get("conv_op")) is not nn.Conv3d:
            raise ModelError(f"the network uses {arguments.get('conv_op')!r}; expected three-dimensional convolutions")
        self.bias = bool(arguments.get("conv_bias", False))
        self.norm, self.norm_kwargs = _layer(arguments.get("norm_op")), dict(arguments.get("norm_op_kwargs") or {})
        self.act, self.act_kwargs = _layer(arguments.get("nonlin")), dict(arguments.get("nonlin_kwargs") or {})
        self.act_first = bool(arguments.get("nonlin_first", False))

    def activation(self) -> nn.Module:
        return nn.Identity() if self.act is None else self.act(**self.act_kwargs)


class _Convolution(nn.Module):
    """Convolution, norm, activation. Dropout does nothing at inference and is left out."""

    def __init__(
        self, style: _Style, inputs: int, outputs: int, kernel: Triple, stride: Triple, *, bias: bool, act: bool
    ) -> None:
        super().__init__()
        a, b, c = ((k - 1) // 2 for k in kernel)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, (a, b, c), bias=bias)
        if style.norm is not None:
            self.norm = style.norm(outputs, **style.norm_kwargs)
        self.nonlin = style.activation() if act else nn.Identity()
        self.act_first = style.act_first and act and style.norm is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.act_first:
            x = self.nonlin(x)
        if hasattr(self, "norm"):
            x = self.norm(x)
        return x if self.act_first else self.nonlin(x)


class _Stack(nn.Module):
    """Several convolutions, the first of which may have a stride."""

    def __init__(self, style: _Style, count: int, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                _Convolution(style, inputs if n == 0 else outputs, outputs, kernel, stride if n == 0 else (1, 1, 1),
                             bias=style.bias, act=True)
                for n in range(count)
            )
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.convs(x)
        return out


class _AveragePool(nn.AvgPool3d):
    """Average pooling; PyTorch has none in bfloat16 on the CPU, so it is done in float32 there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut that averages and projects where sizes differ (ResNet-D, He et al. 2019)."""

    def __init__(self, style: _Style, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        one = (1, 1, 1)
        self.conv1 = _Convolution(style, inputs, outputs, kernel, stride, bias=style.bias, act=True)
        self.conv2 = _Convolution(style, outputs, outputs, kernel, one, bias=style.bias, act=False)
        self.nonlin2 = style.activation()
        steps: list[nn.Module] = []
        if any(s != 1 for s in stride):
            steps.append(_AveragePool(stride, stride))
        if inputs != outputs:
            steps.append(_Convolution(style, inputs, outputs, one, one, bias=False, act=False))
        self.skip = nn.Sequential(*steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return out


class _ResidualStack(nn.Module):
    def __init__(self, style: _Style, count: int, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                _Residual(style, inputs if n == 0 else outputs, outputs, kernel, stride if n == 0 else (1, 1, 1))
                for n in range(count)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x)
        return out


class _Encoder(nn.Module):
    """Stages from fine to coarse; returns the features of each."""

    stem: nn.Module | None

    def __init__(self, style: _Style, inputs: int, shape: _Shape, *, residual: bool, stem: int | None) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        if residual:
            width = stem or shape.features[0]
            self.stem = _Stack(style, 1, inputs, width, shape.kernels[0], (1, 1, 1))
            inputs = width
        else:
            self.stem = None
        for count, outputs, kernel, stride in zip(
            shape.repeats, shape.features, shape.kernels, shape.strides, strict=True
        ):
            if residual:
                stages.append(_ResidualStack(style, count, inputs, outputs, kernel, stride))
            else:
                stages.append(nn.Sequential(_Stack(style, count, inputs, outputs, kernel, stride)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if self.stem is not None:
            x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class _Decoder(nn.Module):
    """From coarse to fine: transposed convolution, the encoder's features beside it, convolutions; then scores."""

    def __init__(self, style: _Style, shape: _Shape, repeats: Sizes, classes: int) -> None:
        super().__init__()
        stages, ups, heads = [], [], []
        for n in range(1, len(shape.features)):
            below, beside = shape.features[-n], shape.features[-(n + 1)]
            stride = shape.strides[-n]
            ups.append(nn.ConvTranspose3d(below, beside, stride, stride, bias=style.bias))
            stages.append(_Stack(style, repeats[n - 1], 2 * beside, beside, shape.kernels[-(n + 1)], (1, 1, 1)))
            heads.append(nn.Conv3d(beside, classes, 1, bias=True))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(ups)
        # coarse heads served training; checkpoints hold them all
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = features[-1]
        for n, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), features[-(n + 2)]), 1))
        out: torch.Tensor = self.seg_layers[-1](x)
        return out


class _Shape:
    """Sizes of all stages, one entry each."""

    def __init__(self, arguments: Mapping[str, Any], repeats: str) -> None:
        stages = int(arguments["n_stages"])
        self.features = _each(arguments["features_per_stage"], stages)
        self.repeats = _each(arguments[repeats], stages)
        self.kernels = [_triple(k) for k in _each(arguments["kernel_sizes"], stages)]
        self.strides = [_triple(s) for s in _each(arguments["strides"], stages)]


def _each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} stages")
    return values


def _triple(value: Any) -> tuple[int, int, int]:
    a, b, c = (value,) * 3 if isinstance(value, int) else value
    return int(a), int(b), int(c)


_COMMON = {
    "input_channels", "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "num_classes",
    "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
    "nonlin_kwargs", "deep_supervision",
}  # fmt: skip


_MOST = {"n_stages": 16, "n_conv_per_stage": 64, "n_blocks_per_stage": 64, "n_conv_per_stage_decoder": 64,
         "features_per_stage": 1 << 14, "kernel_sizes": 64, "strides": 64, "stem_channels": 1 << 14,
         "num_classes": 1 << 16, "input_channels": 1 << 10}  # fmt: skip
"""Far above any published network: a description that asks for more would be built until memory ends."""


def _check_sizes(arguments: Mapping[str, Any]) -> None:
    for name, most in _MOST.items():
        values = np.array(arguments.get(name) or 0, dtype=object).ravel()
        if any(isinstance(v, (int, float)) and not v <= most for v in values):
            raise ValueError(f"{name} is {str(arguments[name])[:40]}, more than {most}")


class _UNet(nn.Module):
    def __init__(self, arguments: Mapping[str, Any], *, repeats: str, residual: bool, more: set[str]) -> None:
        super().__init__()
        _check_sizes(arguments)
        unknown = set(arguments) - _COMMON - more - {repeats}
        if unknown:
            raise ValueError(f"unknown arguments {', '.join(sorted(unknown))}")
        style, shape = _Style(arguments), _Shape(arguments, repeats)
        stem = arguments.get("stem_channels")
        self.encoder = _Encoder(style, int(arguments["input_channels"]), shape, residual=residual, stem=stem)
        decoder_repeats = _each(arguments["n_conv_per_stage_decoder"], len(shape.features) - 1)
        self.decoder = _Decoder(style, shape, decoder_repeats, int(arguments["num_classes"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.decoder(self.encoder(x))
        return out


class PlainConvUNet(_UNet):
    """nnU-Net's plain convolutional U-Net, described as in `plans.json`. (N, C, …) → scores (N, classes, …)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(arguments, repeats="n_conv_per_stage", residual=False, more={"nonlin_first"})


class ResidualEncoderUNet(_UNet):
    """nnU-Net's U-Net with a residual encoder, described as in `plans.json`. (N, C, …) → scores (N, classes, …)."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(arguments, repeats="n_blocks_per_stage", residual=True, more={"stem_channels"})
