"""Compiled models: frozen weights are prepacked, and nothing passes for what it is not."""

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from conftest import make_vit
from patchmerger import insert
from patchmerger.speed.compiling import compiled


@pytest.fixture
def merged():
    return insert(make_vit(depth=2), 2)


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_not_compiled_is_the_model_itself(merged):
    assert compiled(merged, False) is merged


@pytest.mark.slow
def test_frozen_weights_are_prepacked_constants(merged, images):
    expected = merged(images)
    fast = compiled(merged)
    output, code = run_and_get_code(fast, images)
    torch.testing.assert_close(output, expected)
    assert not output.requires_grad
    if torch.backends.mkl.is_available():
        assert re.search(r"mkl\._mkl_linear|mkldnn\._linear_pointwise", "\n".join(code))
    assert not torch._inductor.config.freezing, "what is compiled elsewhere is not frozen"
    with torch.no_grad():
        merged.head.weight.zero_()
    torch.testing.assert_close(fast(images), expected)


def test_a_model_in_training_mode_is_not_frozen(merged):
    with pytest.raises(ValueError, match=r"in training mode: call model.eval\(\) before it is frozen"):
        compiled(merged.train())
