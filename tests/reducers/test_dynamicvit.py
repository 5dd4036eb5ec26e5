"""DynamicViT: the prediction module by a plain reference, hard in evaluation, a policy with a gradient in training."""

import pytest
import torch
from torch import nn

from conftest import make_images, make_vit, tokens
from patchmerger.insertion import insert
from patchmerger.reducers.dynamicvit import DynamicViT

pytestmark = pytest.mark.usefixtures("one_thread")


def make_reducer(num_tokens: int = 4, **options: float) -> DynamicViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reducer = DynamicViT(num_tokens, 8, **options).double()
        for parameter in reducer.parameters():
            nn.init.normal_(parameter)
    return reducer


def test_keeps_what_the_prediction_module_finds_best():
    reducer, x = make_reducer().eval(), tokens(3, 9, 8)
    kept, weights = reducer(x, return_weights=True)
    for image in range(3):
        hidden = [reducer.in_conv(x[image, n]) for n in range(9)]
        mean = sum(h[4:] for h in hidden) / 9
        keep = [float(reducer.out_conv(torch.cat((h[:4], mean)))[0].detach()) for h in hidden]
        places = sorted(sorted(range(9), key=lambda n: -keep[n])[:4])
        assert torch.equal(kept[image], x[image, places])
    assert torch.equal(weights.double() @ x, kept)


def test_policy_in_training():
    reducer, x = make_reducer(ratio_weight=0.0).train(), tokens(64, 9, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        same, _, sizes = reducer(x, return_sizes=True)
        before = (tokens(64, 9, seed=3) > 0).double()
        _, _, again = reducer(x, sizes=before, return_sizes=True)
    assert same is x
    dropped = sizes < 0.5
    assert sizes[dropped].tolist() == pytest.approx([1e-6] * int(dropped.sum()))
    assert torch.equal(sizes[~dropped], torch.ones(int((~dropped).sum())))
    probability = reducer.scores(x, torch.ones(64, 9, dtype=torch.float64))[..., 0].exp()
    assert float((~dropped).double().mean()) == pytest.approx(float(probability.detach().mean()), abs=0.06)
    assert bool((again[before == 0] < 1e-5).all())  # what was dropped stays dropped
    sizes.log().sum().backward()
    assert float(reducer.out_conv[0].weight.grad.abs().sum()) > 0


def test_the_loss_on_the_share_joins_the_backward_pass():
    reducer, x = make_reducer(2, ratio_weight=3.0).train(), tokens(5, 9, 8)
    without = make_reducer(2, ratio_weight=0.0).train()
    gradients = []
    for module in (reducer, without):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            _, _, sizes = module(x, return_sizes=True)
        sizes.sum().backward()
        gradients.append(module.out_conv[0].weight.grad)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _, _, sizes = without(x, return_sizes=True)
    without.zero_grad()
    share = ((sizes - 1e-6) / (1 - 1e-6)).mean(dim=1)
    (3.0 * (share - 2 / 9).square().mean()).backward()
    torch.testing.assert_close(gradients[0] - gradients[1], without.out_conv[0].weight.grad, rtol=1e-4, atol=1e-6)


def test_dropped_tokens_are_not_seen_by_others_in_training():
    """The class token of a model in training is that of the same model without the dropped tokens."""
    model, images = insert(make_vit(), 8, 2, reducer="dynamicvit"), make_images(1)
    found = []
    model.train().blocks[1].merger.register_forward_hook(lambda _, __, output: found.append(output))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        scores = model(images)
        tokens, _, sizes = found[0]
        plain = make_vit()
        x = plain.blocks[:2](plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images)))))
        torch.testing.assert_close(x[:, 1:], tokens)
        x = torch.cat((x[:, :1], x[:, 1:][:, sizes[0] > 0.5]), dim=1)
        assert 1 < x.shape[1] < 17
        expected = plain.forward_head(plain.norm(plain.blocks[2:](x)))
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)


def test_it_trains():
    model = insert(make_vit(), [8, 4], [1, 3], reducer="dynamicvit").train()
    model(make_images()).square().sum().backward()
    assert all(
        float(m.out_conv[0].weight.grad.abs().sum()) > 0 for m in (model.blocks[0].merger, model.blocks[2].merger)
    )
    assert model.eval()(make_images()).shape == (2, 5)


def test_widths_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"dim \(4\) must be at least 8"):
        DynamicViT(4, 4)
