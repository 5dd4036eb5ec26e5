"""The plain Vision Transformers of transformers take a merger, each held against the composition by hand."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchmerger.hosts import find_host
from patchmerger.hosts.transformers.supported import _BY_NAME
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

transformers = pytest.importorskip("transformers", reason="an optional dependency")

from hosts.tiny import (  # noqa: E402
    DEPTH,
    FAMILIES,
    TINY,
    assert_equal,
    gradients,
    insert_into,
    make_inputs,
    make_model,
    padded_inputs,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Those that read no text; the others hold one of them.
ALONE = [name for name in FAMILIES if not TINY[name].joint]
ROPE = ("DINOv3ViTModel", "Sapiens2Model")


def test_every_class_that_is_supported_is_tried():
    supported = {name for name in _BY_NAME if hasattr(transformers, name)}
    assert supported == {name.split()[0] for name in FAMILIES}


def by_hand(name: str, plain: nn.Module, places: dict[int, nn.Module]) -> Any:
    """A plain model made to merge by hooks, of which the library knows nothing; it is changed in place."""
    blocks, prefix = find_host(plain).blocks, TINY[name].prefix
    weights: list[Tensor] = []

    def merge(block: nn.Module, args: Any, output: Any, merger: nn.Module) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        merged, given = merger(x[:, prefix:], return_weights=True)
        weights[:] = [given @ weights[0] if len(x[0]) < prefix + TINY[name].patches else given]
        merged = torch.cat((x[:, :prefix], merged), dim=1)
        return (merged, *output[1:]) if isinstance(output, tuple) else merged

    def later(block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if name in ROPE:
            kwargs["position_embeddings"] = centroid_table(plain, weights[0])
        if "relative_position_bias" in kwargs:
            kwargs["relative_position_bias"] = None
        return args, kwargs

    for number, block in enumerate(blocks, start=1):
        if number in places:
            block.register_forward_hook(lambda *given, merger=places[number]: merge(*given, merger=merger))
        if number > min(places):
            block.register_forward_pre_hook(later, with_kwargs=True)
            drop_bias(block)
    return plain


def drop_bias(block: nn.Module) -> None:
    if hasattr(block, "relative_position_bias"):
        block.relative_position_bias = None
    for module in block.modules():
        if hasattr(module, "has_relative_position_bias"):
            module.has_relative_position_bias = False


def centroid_table(model: Any, weights: Tensor, height: int = 5, width: int = 5) -> tuple[Tensor, Tensor]:
    """Cosine and sine for the centroids of patches, by the formula of the model."""
    row = (2 * torch.arange(height) + 1) / height - 1
    column = (2 * torch.arange(width) + 1) / width - 1
    places = torch.cartesian_prod(row, column)  # (N, 2)
    angles = 2 * math.pi * (weights @ places)[..., None] * model.rope_embeddings.inv_freq  # (B, M, 2, d / 4)
    angles = angles.flatten(2).tile(2)[:, None]  # (B, 1, M, d)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_output_equals_the_composition_by_hand(name):
    plain, model, inputs = make_model(name), make_model(name), make_inputs(name)
    before = run(plain, inputs)
    insert_into(name, model, (7, 3), after=(1, 3), prior=None)
    places = {found.after: found.module for found in mergers(model)}
    given, expected = run(model, inputs), run(by_hand(name, plain, places), inputs_without_padding(inputs))
    assert given.keys() == expected.keys() == before.keys()
    for key, value in expected.items():
        torch.testing.assert_close(given[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    assert any(v.shape != before[k].shape or not torch.allclose(v, before[k], atol=1e-3) for k, v in given.items())


def inputs_without_padding(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A mask of nothing is no mask: what SigLIP 2 gets after a merge."""
    return {name: None if name == "pixel_attention_mask" else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_are_what_is_said_of_them(name):
    prefix, patches = TINY[name].prefix, TINY[name].patches
    model = insert_into(name, make_model(name), 3)
    (found,) = mergers(model)
    assert (found.after, found.num_kept_prefix_tokens, found.tokens_after) == (2, prefix, prefix + 3)
    assert found.tokens_before in (None, prefix + patches)
    seen: list[Tensor] = []
    for block in find_host(model).blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(model, make_inputs(name))
    assert [x.shape[1] for x in seen] == 2 * [prefix + patches] + (DEPTH - 2) * [prefix + 3]
    run(model, make_inputs(name, seed=2))
    constant = (seen[0] == seen[DEPTH]).all(dim=-1)  # (B, P + N)
    assert constant.tolist() == 2 * [prefix * [True] + patches * [False]]


class Permute(nn.Module):
    """One-hot weights: M = N, each token goes on, in another order; the first stays the first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.order = permutation(count)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False) -> Any:
        weights = torch.eye(x.shape[1])[self.order].expand(len(x), -1, -1)
        return (weights @ x, weights) if return_weights else weights @ x


def permutation(count: int) -> Tensor:
    order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(0)) + 1
    return torch.cat((torch.zeros(1, dtype=order.dtype), order))


@pytest.mark.parametrize("name", ALONE)
def test_one_hot_weights_change_nothing(name):
    prefix, patches = TINY[name].prefix, TINY[name].patches
    plain, model, inputs = make_model(name), make_model(name), make_inputs(name)
    insert_into(name, model, patches, reducer=Permute(patches))
    for block in find_host(plain).blocks[2:]:
        drop_bias(block)
        if "both biases" in name:
            block.register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs | NO_BIAS), with_kwargs=True)
    expected, given = run(plain, inputs), run(model, inputs)
    for key, value in expected.items():
        if key.split(".")[-1] in ("last_hidden_state", "features") and not key.startswith("text"):
            first = 0 if key == "features" else prefix
            value = torch.cat((value[:, :first], value[:, first:][:, permutation(patches)]), dim=1)
        torch.testing.assert_close(given[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


NO_BIAS = {"relative_position_bias": None}


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_and_remove(name):
    plain, model, inputs = make_model(name), make_model(name), make_inputs(name)
    keys, expected = list(plain.state_dict()), run(plain, inputs)
    insert_into(name, model, (8, 3), after=(1, 3))
    new = [key for key in model.state_dict() if key not in keys]
    assert [key for key in model.state_dict() if key in keys] == keys
    assert len(new) == sum(len(merger.module.state_dict()) for merger in mergers(model))
    assert all(".merger." in key for key in new)
    again = pickle.loads(pickle.dumps(model)) if TINY[name].joint else copy.deepcopy(model)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert_equal(run(again, inputs), run(model, inputs))
    assert remove(again) is again
    assert [type(m) for m in again.modules()] == [type(m) for m in plain.modules()]
    assert [sorted(vars(m)) for m in again.modules()] == [sorted(vars(m)) for m in plain.modules()]
    assert list(again.state_dict()) == keys
    assert_equal(run(again, inputs), expected)


@pytest.mark.parametrize("name", ALONE)
def test_gradients_reach_every_parameter_that_they_reached_before(name):
    plain, model, inputs = make_model(name), make_model(name), make_inputs(name)
    before = {key for key, gradient in gradients(plain, inputs).items() if gradient.abs().max() > 1e-5}
    insert_into(name, model, 3)
    after = {key for key, gradient in gradients(model, inputs).items() if gradient.abs().max() > 0}
    unreached = before - after
    assert all("relative_position_bias" in key for key in unreached), unreached
    assert len(unreached) == ((DEPTH - 2) if " with " in name else 0)
    (merger,) = mergers(model)
    parameters = {key for key, _ in merger.module.named_parameters()}
    assert {key.split(".merger.")[1] for key in after if ".merger." in key} == parameters


# Positions


def test_centroids_in_an_image_that_is_not_square():
    plain, model = make_model("DINOv3ViTModel"), make_model("DINOv3ViTModel")
    (found,) = mergers(insert(model, 3, prior=None))
    assert found.positions == "centroid"
    images = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(1))
    captured: list[Any] = []
    for block in (find_host(plain).blocks[1], find_host(model).blocks[2].attention):
        block.register_forward_hook(lambda *given: captured.append(given), with_kwargs=True)
    run(plain, {"pixel_values": images})
    _, weights = found.module(captured[0][3][:, 4:], return_weights=True)
    run(model, {"pixel_values": images})
    for given, expected in zip(
        captured[1][2]["position_embeddings"], centroid_table(plain, weights, 5, 8), strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=0, atol=2e-6)


def test_a_grid_too_coarse_for_centroids_is_refused():
    model = insert(make_model("DINOv3ViTModel"), 3)
    message = "pixel_values give 4 × 5 patches, whose rotary phases .* use more than 4 patches a side, or insert with"
    with pytest.raises(ValueError, match=message):
        model(torch.ones(1, 3, 32, 40))
    model(torch.ones(1, 3, 40, 40))
    model.config.pos_embed_rescale = 2.0
    with pytest.raises(ValueError, match=r"pixel_values give 5 × 5 patches, .* use more than 8 patches a side"):
        model.train()(torch.ones(1, 3, 40, 40))
    insert(remove(model), 3, positions="drop")(torch.ones(1, 3, 32, 40))


def test_no_positions():
    plain, model = make_model("DINOv3ViTModel"), make_model("DINOv3ViTModel")
    inputs = make_inputs("DINOv3ViTModel")
    (found,) = mergers(insert(model, 3, positions="drop", prior=None))
    blocks = find_host(plain).blocks
    blocks[1].register_forward_hook(lambda m, a, x: torch.cat((x[:, :4], found.module(x[:, 4:])), dim=1))
    identity = (torch.ones(3, 16), torch.zeros(3, 16))
    for block in blocks[2:]:
        block.register_forward_pre_hook(
            lambda m, args, kwargs: (args, kwargs | {"position_embeddings": identity}), with_kwargs=True
        )
    torch.testing.assert_close(run(model, inputs), run(plain, inputs))


# Padding


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Siglip2VisionModel", "Siglip2ForImageClassification", "Siglip2Model"])
def test_each_image_of_a_padded_batch_gets_what_it_gets_alone(name, implementation):
    model = make_model(name)
    model.set_attn_implementation(implementation)
    insert(model, (7, 3), after=(1, 3))
    text = {key: value for key, value in make_inputs(name).items() if key == "input_ids"}
    together = run(model, padded_inputs() | text)
    alone = {"pixel_values": padded_inputs()["pixel_values"][1:, :12], "spatial_shapes": torch.tensor([[3, 4]])}
    for mask in (torch.ones(1, 12, dtype=torch.int64), None):
        found = run(model, alone | {"pixel_attention_mask": mask} | text)
        for key, value in found.items():
            if key.startswith("text"):
                continue
            expected = together[key][:, 1:] if key == "logits_per_text" else together[key][1:]
            torch.testing.assert_close(expected, value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
