"""The U-Net on blocks of voxels: shapes, what its classes add up to, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slice3d.errors import ModelError
from slice3d.models.loading import build_network
from slice3d.models.subpixel import SubpixelUNet, _to_depth, _to_space

CLASS = "slice3d.models.subpixel.SubpixelUNet"
ARGUMENTS = {"in_channels": 1, "out_channels": 4, "filters": [8, 16, 24], "context": 3, "context_of": 2}


@given(channels=st.integers(1, 5), shape=st.tuples(*[st.integers(1, 4)] * 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_blocks_come_back_to_their_voxels(channels: int, shape: tuple[int, int, int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, *(2 * n for n in shape))
    deep = _to_depth(x)
    assert deep.shape == (2, 8 * channels, *shape)
    assert torch.equal(_to_space(deep, channels), x)
    # every block's values are the eight voxels it stands for
    i, j, k = (n - 1 for n in shape)
    block = x[1, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2]
    assert torch.equal(deep[1, :, i, j, k].sort()[0], block.flatten().sort()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_context_counts_to_its_class_with_exactly_its_probability(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build_network(CLASS, ARGUMENTS).to(dtype)
    x = torch.randn(1, 1, 8, 16, 24, dtype=dtype)
    with torch.no_grad():
        every = network.train()(x).float()
        merged = network.eval()(x).float()
    assert every.shape == (1, 7, 8, 16, 24)
    assert merged.shape == (1, 4, 8, 16, 24)
    shares, found = every.softmax(1), merged.softmax(1)
    expected = torch.stack([shares[:, 0], shares[:, 1], shares[:, 2] + shares[:, 4:].sum(1), shares[:, 3]], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


def test_without_context_nothing_changes_between_training_and_use() -> None:
    torch.manual_seed(1)
    network = SubpixelUNet(in_channels=2, out_channels=3, filters=(8, 16, 24))
    x = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network.train()(x), network.eval()(x))


def test_auxiliary_heads_see_every_decoder_level() -> None:
    from slice3d.training.heads import AuxiliaryHeads

    network = AuxiliaryHeads(build_network(CLASS, ARGUMENTS), levels=2)
    outputs = network.train()(torch.randn(1, 1, 16, 16, 24))
    assert [tuple(o.shape) for o in outputs] == [(1, 7, 16, 16, 24), (1, 7, 8, 8, 12), (1, 7, 4, 4, 6)]
    assert network.eval()(torch.randn(1, 1, 16, 16, 24)).shape == (1, 4, 16, 16, 24)


@pytest.mark.parametrize("change", [{"context_of": 4}, {"context": -1}, {"filters": [8, 16]}, {"unknown": 1}])
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="SubpixelUNet"):
        build_network(CLASS, {**ARGUMENTS, **change})
