"""The quicker group norm is torch's own: values, gradients, names of parameters."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slice3d.training.group_norm import with_quick_gradients


@given(
    batch=st.integers(1, 3), groups=st.integers(1, 4), each=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(2, 7)), last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_values_and_gradients_are_those_of_torch(
    batch: int, groups: int, each: int, shape: tuple[int, int, int], last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    channels = groups * each
    own = nn.Sequential(nn.GroupNorm(groups, channels)).double()
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    quick = nn.Sequential(nn.GroupNorm(groups, channels)).double()
    quick.load_state_dict(own.state_dict())
    assert list(with_quick_gradients(quick).state_dict()) == list(own.state_dict())
    assert type(quick[0]) is not nn.GroupNorm
    values = torch.randn(batch, channels, *shape, dtype=torch.float64)
    if last:
        values = values.to(memory_format=torch.channels_last_3d)
    slope = torch.randn_like(values)
    found = []
    for network in (own, quick):
        given_values = values.clone().requires_grad_()
        out = network(given_values)
        out.backward(slope)
        found.append([out.detach(), given_values.grad, *(p.grad for p in network.parameters())])
    for expected, got in zip(*found, strict=True):
        # sums of the gradient are taken in single precision
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


def test_other_shapes_are_left_to_torch() -> None:
    norm = with_quick_gradients(nn.Sequential(nn.GroupNorm(2, 4)))
    values = torch.randn(3, 4, 9)
    torch.testing.assert_close(norm(values), nn.functional.group_norm(values, 2))
