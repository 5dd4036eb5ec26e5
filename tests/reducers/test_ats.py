"""ATS against a plain loop in float64, and that repetitions count once in later attention."""

import copy

import pytest
import torch

from conftest import make_images, make_vit, tokens
from patchmerger.insertion import insert
from patchmerger.reducers.ats import ATS, sampled_places

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("number", "num_tokens"), [(16, 6), (9, 8), (5, 1), (2, 1)])
def test_samples_as_a_plain_loop_does(number, num_tokens):
    significance = tokens(4, number, seed=1).exp()
    x = tokens(4, number, 3)
    sampled, weights, sizes = ATS(num_tokens)(x, significance=significance, return_weights=True, return_sizes=True)
    for image in range(4):
        shares = [float(significance[image, : n + 1].sum() / significance[image].sum()) for n in range(number)]
        places = []
        for m in range(1, num_tokens + 1):
            level = m / num_tokens - 1 / (2 * num_tokens)
            places.append(min(range(number), key=lambda n: abs(shares[n] - level)))
        assert torch.equal(sampled[image], x[image, places])
        assert sizes[image].tolist() == pytest.approx([1 / places.count(place) for place in places])
    assert torch.equal(weights.double() @ x, sampled)


def test_a_second_sampling_divides_sizes_again():
    significance = torch.tensor([[8.0, 1.0, 1.0]])
    x = tokens(1, 3, 2)
    _, _, sizes = ATS(2)(x, significance=significance, sizes=torch.tensor([[0.5, 0.5, 1.0]]), return_sizes=True)
    assert sampled_places(significance, 2).tolist() == [[0, 0]]
    assert sizes.tolist() == [[0.25, 0.25]]


def test_where_nothing_is_significant_tokens_are_sampled_all_the_same():
    assert sampled_places(torch.zeros(1, 5), 3).shape == (1, 3)
    assert int(sampled_places(torch.zeros(1, 5), 3).max()) <= 4


def test_the_class_token_sees_repeated_tokens_once():
    """A model that samples 12 of 16, and one that goes on with the different ones of them alone."""
    model, images = insert(make_vit("registers, LayerScale"), 12, 2, reducer="ats"), make_images(1)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:64] *= 4  # sharper attention, so that tokens are repeated
    kept = []
    model.blocks[1].merger.register_forward_hook(lambda _, args, kwargs, out: kept.append(out), with_kwargs=True)
    with torch.no_grad():
        scores = model(images)
    sizes = kept[0][2][0]
    assert bool((sizes < 1).any())
    state = model.blocks[1].merge_state
    prefix = state.num_kept_prefix_tokens
    seen = []
    model.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(images)
    first = torch.cat((torch.ones(1, dtype=torch.bool), (kept[0][0][0, 1:] != kept[0][0][0, :-1]).any(dim=-1)))
    plain = copy.deepcopy(make_vit("registers, LayerScale"))
    x = torch.cat((seen[0][:, :prefix], seen[0][:, prefix:][:, first]), dim=1)
    with torch.no_grad():
        x = plain.norm(plain.blocks[3](plain.blocks[2](x)))
        torch.testing.assert_close(plain.forward_head(x), scores, rtol=1e-4, atol=1e-5)
