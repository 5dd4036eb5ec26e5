"""Random numbers that a seed fixes, and the state that is put back."""

import random

import numpy as np
import pytest
import torch

from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu, seeded


def test_keys_never_change() -> None:
    assert key(0, 1, 2) == 8901564848246840783
    assert len({key(0, 1), key(1, 0), key(0, 1, 0)}) == 3


def test_random_state_is_set_and_kept() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    seed_everything_on_cpu(5)
    first = draw()
    with random_state_kept():
        seed_everything_on_cpu(2**64 - 1)
        inner = draw()
    second = draw()
    seed_everything_on_cpu(5)
    assert (draw(), draw()) == (first, second)
    assert inner not in (first, second)


def test_a_seed_for_a_while() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = torch.rand(1)
    with seeded(7):
        inner = torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
    with seeded(7):
        assert torch.equal(torch.rand(1), inner)
    with seeded(8):
        assert not torch.equal(torch.rand(1), inner)
    torch.manual_seed(5)
    with pytest.raises(KeyError, match="within"), seeded(7):
        raise KeyError("within")
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_for_a_while_on_a_gpu() -> None:
    torch.cuda.manual_seed_all(5)
    expected = torch.rand(2, device="cuda")
    torch.cuda.manual_seed_all(5)
    first = torch.rand(1, device="cuda")
    with seeded(7):
        torch.rand(1, device="cuda")
    assert torch.equal(torch.cat([first, torch.rand(1, device="cuda")]), expected)
