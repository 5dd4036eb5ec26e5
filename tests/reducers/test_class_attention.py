"""Top-K and EViT: what is kept is what the class token attends to most, by a plain reference in float64."""

import pytest
import torch

from conftest import tokens
from patchmerger.reducers.dynamicvit import DynamicViT
from patchmerger.reducers.evit import EViT
from patchmerger.reducers.topk import TopK

pytestmark = pytest.mark.usefixtures("one_thread")

X = tokens(3, 9, 4)
ATTENTION = tokens(3, 9, seed=1).softmax(dim=1) * 0.8  # the rest is the class token's


def kept_by_loop(attention: torch.Tensor, count: int) -> list[int]:
    ranked = sorted(range(len(attention)), key=lambda n: -float(attention[n]))
    return sorted(ranked[:count])


@pytest.mark.parametrize("num_tokens", [1, 4, 8])
def test_top_k(num_tokens):
    kept, weights = TopK(num_tokens)(X, class_attention=ATTENTION, return_weights=True)
    for image in range(3):
        assert torch.equal(kept[image], X[image, kept_by_loop(ATTENTION[image], num_tokens)])
    assert torch.equal(weights.double() @ X, kept)
    assert torch.equal(TopK(num_tokens)(X, class_attention=ATTENTION), kept)


@pytest.mark.parametrize("num_tokens", [1, 4, 8])
def test_evit(num_tokens):
    merged, weights = EViT(num_tokens)(X, class_attention=ATTENTION, return_weights=True)
    for image in range(3):
        kept = kept_by_loop(ATTENTION[image], num_tokens - 1)
        assert torch.equal(merged[image, :-1], X[image, kept])
        fused = sum(ATTENTION[image, n] * X[image, n] for n in range(9) if n not in kept)
        torch.testing.assert_close(merged[image, -1], fused)
    torch.testing.assert_close(weights.double() @ X, merged, rtol=1e-6, atol=1e-6)
    assert torch.equal(EViT(num_tokens)(X, class_attention=ATTENTION), merged)


def test_fewer_tokens_than_go_on_are_refused():
    given = {"class_attention": ATTENTION}
    for make, arguments in ((lambda: TopK(10), given), (lambda: EViT(10), given), (lambda: DynamicViT(10, 8), {})):
        x = X if arguments else tokens(3, 9, 8).float()
        with pytest.raises(ValueError, match=r"num_tokens \(10\) is more than the 9 tokens that arrive"):
            make().eval()(x, **arguments)
