"""timm's families beside the plain VisionTransformer, each held against the composition by hand."""

import pytest
import torch
from torch import Tensor, nn

from hosts.families import DEPTH, FAMILIES, NUM_PATCHES, Hand, encoder_of, family_images
from hosts.merged_families import BIAS, make_merged, make_plain, places, plain_model
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def arriving(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The tokens that arrive at each block."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in encoder_of(model).blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_merged_output_equals_the_composition_by_hand(name):
    images, plain = family_images(), plain_model(name)
    for settings in ((5, 2), ((9, 5), (1, 2))):
        model = make_merged(name, *settings)
        given = model(images)
        torch.testing.assert_close(given, Hand(plain, FAMILIES[name].prefix, places(model))(images), rtol=0, atol=1e-5)
        assert (given - plain(images)).abs().max() > 0.03


@torch.no_grad()
def test_later_blocks_see_merged_tokens_and_the_prefix_is_the_prefix(name):
    prefix, images = FAMILIES[name].prefix, family_images()
    first = arriving(plain_model(name), images)[0]
    assert (first[0] == first[1]).all(dim=-1).tolist() == [True] * prefix + [False] * NUM_PATCHES
    model = make_merged(name)
    counts = [x.shape[1] - prefix for x in arriving(model, images)]
    assert counts == [NUM_PATCHES, 9, 5, 5]
    assert [found.num_kept_prefix_tokens for found in mergers(model)] == [prefix, prefix]
    assert [found.tokens_after for found in mergers(model)] == [prefix + 9, prefix + 5]


class Permute(nn.Module):
    """One-hot weights: the tokens in another order."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.order = torch.randperm(number, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False):
        weights = torch.eye(x.shape[1])[self.order].expand(len(x), -1, -1)
        return (weights @ x, weights) if return_weights else weights @ x


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BIAS])
@torch.no_grad()
def test_one_hot_weights_change_nothing(name):
    images = family_images()
    model = make_merged(name, NUM_PATCHES, 2, reducer=Permute(NUM_PATCHES))
    torch.testing.assert_close(model(images), plain_model(name)(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BIAS)
@torch.no_grad()
def test_one_hot_weights_lose_the_bias_only(name):
    images = family_images()
    model = make_merged(name, NUM_PATCHES, 2, reducer=Permute(NUM_PATCHES))
    unbiased = Hand(plain_model(name), FAMILIES[name].prefix, {2: Permute(NUM_PATCHES)})
    torch.testing.assert_close(model(images), unbiased(images), rtol=0, atol=1e-5)
    assert (model(images) - plain_model(name)(images)).abs().max() > 1e-4


@torch.no_grad()
def test_remove_puts_back_the_very_model(name):
    images, plain, model = family_images(), plain_model(name), make_merged(name)
    new = model.state_dict().keys() - plain.state_dict().keys()
    assert len(new) == 6
    assert all(".merger." in key for key in new)
    model(images)
    remove(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(images), plain(images))


def reached(model: nn.Module) -> set[str]:
    model.zero_grad()
    model(family_images()).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.count_nonzero()}


def test_gradients_reach_what_they_reached_before(name):
    before, model = reached(make_plain(name)), make_merged(name)
    mergers_own = {key for key, _ in model.named_parameters() if ".merger." in key}
    dropped = {
        key
        for key in before
        if name in BIAS and ("rel_pos." in key or "relative_position_bias_table" in key)
        if key.startswith(tuple(f"blocks.{i}." for i in range(1, DEPTH)))
    }
    assert reached(model) == (before | mergers_own) - dropped
    assert bool(dropped) == (name in BIAS and "shared" not in name)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.prefix])
def test_a_prefix_that_is_counted_is_not_merged(name):
    with pytest.raises(ValueError, match=rf"prefix \('merge'\) .* first {FAMILIES[name].prefix} tokens from patches"):
        insert(make_plain(name), 5, prefix="merge", positions=FAMILIES[name].positions)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.prefix])
@torch.no_grad()
def test_without_a_prefix_all_may_be_merged(name):
    images = family_images()
    assert torch.equal(make_merged(name, prefix="merge")(images), make_merged(name)(images))


@torch.no_grad()
def test_features_come_as_sequences(name):
    images, prefix = family_images(), FAMILIES[name].prefix
    plain, model = plain_model(name), make_merged(name, 5, 2)
    wanted = plain.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    final, features = model.forward_intermediates(images, output_fmt="NLC")
    assert [f.shape[1] for f in features] == [NUM_PATCHES, 5, 5, 5]
    assert torch.equal(features[0], wanted[0])
    (last,) = model.forward_intermediates(images, indices=1, output_fmt="NLC", norm=True, intermediates_only=True)
    assert last.shape == (2, 5, 32)
    if name != "CaiT":  # its class token joins after the blocks
        assert torch.equal(final, model.forward_features(images))
        assert torch.equal(final.flatten(1, -2)[:, prefix:], last)
    (feature_map,) = model.forward_intermediates(images, indices=[0], intermediates_only=True)
    assert torch.equal(feature_map.flatten(2).transpose(1, 2), wanted[0])
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\) asks for feature maps of block indices \[1, 3\]"):
        model.forward_intermediates(images, indices=[0, 1, 3])


def test_queries_have_no_weight_decay(name):
    plain, model = plain_model(name), make_merged(name)
    root = "" if encoder_of(model) is model else "encoder."
    queries = {f"{root}blocks.{i}.merger.weight" for i in (0, 1)}
    assert set(model.no_weight_decay()) == set(plain.no_weight_decay()) | queries


def test_attention_masks_are_refused():
    for name in ("EVA", "RoPE axial"):
        with pytest.raises(ValueError, match="attn_mask was given to a merged model"):
            make_merged(name)(family_images(), attn_mask=torch.ones(37, 37, dtype=torch.bool))
        with pytest.raises(ValueError, match="is_causal was given to a merged model"):
            make_merged(name)(family_images(), is_causal=True)
