"""What the super-resolution tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are faster on one thread, and give the same bytes each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
