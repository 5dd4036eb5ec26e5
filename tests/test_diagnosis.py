"""The diagnosis of a merger: exact where A is known, against numpy where it is not, and without a trace left."""

import numpy as np
import pytest
import torch
from torch import nn

from conftest import NUM_PATCHES, make_images, make_vit
from patchmerger import PatchMerger, insert
from patchmerger.diagnosis import diagnose
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")


def with_queries(queries: torch.Tensor) -> nn.Module:
    return insert(make_vit(), num_tokens=len(queries), init=queries)


def test_queries_near_zero_are_average_pooling():
    [found] = diagnose(with_queries(torch.zeros(4, 32)), make_images())
    assert (found.name, found.num_tokens) == ("blocks.1.merger", 4)
    assert found.effective_rank == pytest.approx(1)
    assert found.row_entropy == pytest.approx(1)
    assert found.similarity == pytest.approx(1)
    assert found.weight_std == 0


def test_runs_that_share_no_token_are_as_many_as_there_are():
    model = insert(make_vit(), num_tokens=4, reducer=AveragePool(4))
    [found] = diagnose(model, make_images())
    assert found.effective_rank == pytest.approx(4)
    assert found.row_entropy == pytest.approx(np.log(NUM_PATCHES / 4) / np.log(NUM_PATCHES))
    assert found.similarity == pytest.approx(0)
    assert found.weight_std is None


def test_against_numpy():
    torch.manual_seed(0)
    model = with_queries(torch.randn(3, 32))
    tokens = []
    handle = model.blocks[1].merger.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    with torch.no_grad():
        model(make_images())
        handle.remove()
        a = model.blocks[1].merger(tokens[0], return_weights=True)[1].double().numpy()
    [found] = diagnose(model, make_images())
    ranks, cosines = [], []
    for image in a:
        singular = np.linalg.svd(image, compute_uv=False)
        shares = singular / singular.sum()
        ranks.append(np.exp(-(shares * np.log(shares)).sum()))
        cosines += [
            image[i] @ image[j] / np.linalg.norm(image[i]) / np.linalg.norm(image[j])
            for i in range(3)
            for j in range(3)
            if i != j
        ]
    assert found.effective_rank == pytest.approx(np.mean(ranks))
    assert found.row_entropy == pytest.approx(-(a * np.log(a)).sum(axis=-1).mean() / np.log(NUM_PATCHES))
    assert found.similarity == pytest.approx(np.mean(cosines))
    assert found.weight_std == pytest.approx(model.blocks[1].merger.weight.detach().numpy().std(), rel=1e-5)


def test_several_mergers_and_one_token():
    model = insert(make_vit(), num_tokens=[4, 1], after=[1, 3])
    first, second = diagnose(model, make_images())
    assert (first.num_tokens, second.num_tokens) == (4, 1)
    assert second.similarity is None
    assert second.effective_rank == pytest.approx(1)


def test_the_model_is_left_as_it_was():
    model = insert(make_vit(), num_tokens=4).train()
    model.head.eval()
    diagnose(model, make_images())
    assert model.training
    assert not model.head.training
    assert not model.blocks[1].merger._forward_pre_hooks
    assert diagnose(make_vit(), make_images()) == []


def test_a_compiled_model_is_diagnosed_too():
    model = insert(make_vit(), num_tokens=4)
    expected = diagnose(model, make_images())
    model.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        model(make_images())
    assert diagnose(model, make_images()) == expected


def test_reducers_that_do_not_tell_are_left_out():
    class Silent(nn.Module):
        def forward(self, x):
            return x[:, :4]

    assert diagnose(insert(make_vit(), num_tokens=4, reducer=Silent()), make_images()) == []


@pytest.mark.parametrize(("spread", "scale"), [(1.0, 1.0), (0.1, 1.0), (2.0, 0.25), (2.0, -0.25)])
def test_the_spread_is_that_of_the_scores_at_the_start(spread, scale):
    from patchmerger.merger import init_with_logit_std

    torch.manual_seed(0)
    merger = PatchMerger(64, 200, scale=scale, init=init_with_logit_std(spread, scale))
    scores = scale * merger.weight @ merger.norm(torch.randn(1, 500, 64))[0].T
    assert float(scores.detach().std()) == pytest.approx(spread, rel=0.05)
