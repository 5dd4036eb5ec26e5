import sys

import pytest
import torch

from patchmerger.speed.memory import is_out_of_memory, limited_to_free_memory, out_of_memory_text, peak_of

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_is_what_is_held_at_once():
    kept = []

    def step():
        first = torch.empty(MIB)  # 4 MiB
        second = torch.empty(2 * MIB)
        del first
        kept.append(torch.empty(MIB // 2))
        del second

    assert peak_of(step, CPU) == 12 * MIB
    assert peak_of(lambda: None, CPU) == 0


def test_the_peak_of_a_backward_pass():
    weight = torch.ones(MIB, requires_grad=True)  # 4 MiB
    weight.grad = torch.zeros_like(weight)

    def step():
        (weight.exp().exp() * 1.0).sum().backward()

    assert 8 * MIB <= peak_of(step, CPU) < 24 * MIB


def test_the_profiler_is_silent(capfd):
    peak_of(lambda: torch.empty(8), CPU)
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands out memory that it does not have")
def test_what_does_not_fit_fails_and_the_limit_goes_again():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(RuntimeError, match="can't allocate memory") as error, limited_to_free_memory(CPU):
        torch.empty(2**42)
    assert is_out_of_memory(error.value)
    assert out_of_memory_text(error.value).startswith("out of memory (a single tensor of 16,384.0 GiB")
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with limited_to_free_memory(CPU):
        assert torch.ones(8).sum() == 8


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), "tensor of 20.00 GiB"),
        (MemoryError(), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
    ],
)
def test_errors_that_say_so(error, text):
    assert is_out_of_memory(error)
    assert text in out_of_memory_text(error)


def test_errors_that_do_not():
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
