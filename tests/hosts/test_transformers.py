"""The plain Vision Transformers of transformers take a merger; the others are refused with a reason."""

import copy
import functools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.transformers import _BY_NAME
from patchmerger.inserted import mergers
from patchmerger.insertion import insert, remove

transformers = pytest.importorskip("transformers", reason="an optional dependency")

from hosts.tiny import DEPTH, TINY, answers, make_inputs, make_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# Older versions have fewer classes.
FAMILIES = [name for name in TINY if hasattr(transformers, name.split()[0])]
# Those that read no text; the others hold one of them.
ALONE = [name for name in FAMILIES if not TINY[name].joint]
CLASSIFIERS = [name for name in FAMILIES if "Classification" in name and "Teacher" not in name]
ROPE = ("DINOv3ViTModel", "Sapiens2Model")


def test_every_class_that_is_supported_is_tried():
    supported = {name for name in _BY_NAME if hasattr(transformers, name)}
    assert supported == {name.split()[0] for name in FAMILIES}


def positions_of(name: str) -> str | None:
    return "drop_bias" if "bias" in name else None


def insert_into(name: str, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return insert(model, *args, positions=positions_of(name), **kwargs)


def run(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return answers(model(**inputs))


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
    insert_into(name, model, (7, 3), after=(1, 3))
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
    assert (found.after, found.num_passing_tokens, found.tokens_after) == (2, prefix, prefix + 3)
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
    assert len(new) == 6
    assert all(".merger." in key for key in new)
    again = pickle.loads(pickle.dumps(model)) if TINY[name].joint else copy.deepcopy(model)
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert_equal(run(again, inputs), run(model, inputs))
    assert remove(again) is again
    assert [type(m) for m in again.modules()] == [type(m) for m in plain.modules()]
    assert [sorted(vars(m)) for m in again.modules()] == [sorted(vars(m)) for m in plain.modules()]
    assert list(again.state_dict()) == keys
    assert_equal(run(again, inputs), expected)


def assert_equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], value) for key, value in expected.items())


def gradients(model: nn.Module, inputs: dict[str, Tensor], times: int = 1) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = [answers(model(**inputs)) for _ in range(times)]
    sum(x.square().sum() for found in outputs for x in found.values() if x.requires_grad).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ALONE)
def test_gradients_reach_every_parameter_that_they_reached_before(name):
    plain, model, inputs = make_model(name), make_model(name), make_inputs(name)
    before = {key for key, gradient in gradients(plain, inputs).items() if gradient.abs().max() > 1e-5}
    insert_into(name, model, 3)
    after = {key for key, gradient in gradients(model, inputs).items() if gradient.abs().max() > 0}
    unreached = before - after
    assert all("relative_position_bias" in key for key in unreached), unreached
    assert len(unreached) == ((DEPTH - 2) if " with " in name else 0)
    assert {key.split(".merger.")[1] for key in after if ".merger." in key} == {"weight", "norm.weight", "norm.bias"}


# What transformers does besides: recorded outputs, losses, checkpointing, attention implementations, compiling


def make_eager(name: str) -> Any:
    # Data2Vec chooses when it is made, the others when they are called.
    model = make_model(name, **({"attn_implementation": "eager"} if name.startswith("Data2Vec") else {}))
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_attentions(name):
    prefix, patches = TINY[name].prefix, TINY[name].patches
    model, plain = make_eager(name), make_eager(name)
    recorded = {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**make_inputs(name), **recorded)
    if outputs.get("vision_model_output", outputs).hidden_states is None:
        pytest.skip("this version records nothing for a model inside another")
    outputs = insert_into(name, model, 3)(**make_inputs(name), **recorded)
    outputs = outputs.get("vision_model_output", outputs)
    long, short = prefix + patches, prefix + 3
    assert [x.shape[1] for x in outputs.hidden_states] == [long, long, short, short, short]
    assert [tuple(x.shape[2:]) for x in outputs.attentions] == [(long, long)] * 2 + [(short, short)] * 2
    assert_equal(run(remove(model), make_inputs(name)), run(plain, make_inputs(name)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_labels_and_loss(name):
    model = insert_into(name, make_model(name), 3)
    labels = torch.tensor([1, 4])
    outputs = model(**make_inputs(name), labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    assert isinstance(model(**make_inputs(name), return_dict=False), tuple)


CHECKPOINTED = ("ViTForImageClassification", "DINOv3ViTModel", "BeitModel with bias", "Siglip2ForImageClassification")
CHECKPOINTED += ("Data2VecVisionModel with bias", "CLIPModel")


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_with_two_forwards_before_the_backward(name):
    model = insert_into(name, make_model(name), (8, 3), after=(1, 3)).train()
    calls = []
    mergers(model)[0].module.register_forward_pre_hook(lambda *given: calls.append(given))
    torch.manual_seed(0)  # DINOv3 rescales its positions at random
    expected = gradients(model, make_inputs(name), times=2)
    assert len(calls) == 2
    checkpoint(model, use_reentrant=False)
    torch.manual_seed(0)
    given = gradients(model, make_inputs(name), times=2)
    assert len(calls) == 2 + 4  # forward and again in the backward pass
    assert given.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(given[key], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def checkpoint(model: Any, *, use_reentrant: bool) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def test_reentrant_checkpointing_works_or_is_refused():
    name = "ViTForImageClassification"
    model = insert(make_model(name), 3).train()
    expected = gradients(model, make_inputs(name))
    checkpoint(model, use_reentrant=True)
    for key, gradient in gradients(model, make_inputs(name)).items():
        torch.testing.assert_close(gradient, expected[key])
    model = insert(make_model("DINOv3ViTModel"), 3).train()
    checkpoint(model, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"merged tokens came without their positions.*use_reentrant=False"):
        gradients(model, make_inputs("DINOv3ViTModel"))


@pytest.mark.parametrize("name", [*CHECKPOINTED, "Aimv2VisionModel", "Dinov2Model"])
def test_attention_implementations_agree(name):
    model = insert_into(name, make_model(name), 3)
    inputs = padded_inputs() if name.startswith("Siglip2") else make_inputs(name)
    found = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(run(model, inputs))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DINOv3ViTModel"])
@torch.no_grad()
def test_compile(name):
    torch.compiler.reset()
    model, inputs = insert_into(name, make_model(name), 3), make_inputs(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for key, value in answers(compiled(**inputs)).items():
        torch.testing.assert_close(value, answers(model(**inputs))[key])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("ViTForImageClassification", "eager"),
        ("DINOv3ViTModel", "sdpa"),
        ("BeitModel with bias", "sdpa"),
    ],
)
@torch.no_grad()
def test_export(name, implementation):
    model, inputs = make_model(name), make_inputs(name)
    model.set_attn_implementation(implementation)
    insert_into(name, model, (7, 3), after=(1, 3))
    program = torch.export.export(model, (), inputs)
    for key, value in answers(program.module()(**inputs)).items():
        torch.testing.assert_close(value, answers(model(**inputs))[key])
    mask = torch.ones(2, TINY[name].prefix + TINY[name].patches, dtype=torch.bool)
    with pytest.raises(ValueError, match="attention_mask was given to a merged model"):
        torch.export.export(model, (), inputs | {"attention_mask": mask})


# Positions


def test_centroids_in_an_image_that_is_not_square():
    plain, model = make_model("DINOv3ViTModel"), make_model("DINOv3ViTModel")
    (found,) = mergers(insert(model, 3))
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
    insert(remove(model), 3, positions="none")(torch.ones(1, 3, 32, 40))


def test_no_positions():
    plain, model = make_model("DINOv3ViTModel"), make_model("DINOv3ViTModel")
    inputs = make_inputs("DINOv3ViTModel")
    (found,) = mergers(insert(model, 3, positions="none"))
    blocks = find_host(plain).blocks
    blocks[1].register_forward_hook(lambda m, a, x: torch.cat((x[:, :4], found.module(x[:, 4:])), dim=1))
    identity = (torch.ones(3, 16), torch.zeros(3, 16))
    for block in blocks[2:]:
        block.register_forward_pre_hook(
            lambda m, args, kwargs: (args, kwargs | {"position_embeddings": identity}), with_kwargs=True
        )
    torch.testing.assert_close(run(model, inputs), run(plain, inputs))


def test_relative_bias_is_dropped_only_when_asked_for():
    for name in ("BeitModel with bias", "Data2VecVisionForImageClassification with both biases"):
        with pytest.raises(UnsupportedModelError, match=r"a relative position bias.*positions='drop_bias' leaves"):
            insert(make_model(name), 3)
    shared = make_model("BeitModel", use_shared_relative_position_bias=True)
    if not hasattr(shared, "shared_position_bias"):
        pytest.skip("this version gives the bias to the blocks as such")
    with pytest.raises(UnsupportedModelError, match=r"^BeitModel cannot take a merger: .* share as an attention mask"):
        insert(shared, 3, positions="drop_bias")


# Masks


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["ViTModel", "DINOv3ViTModel", "CLIPVisionModel", "BeitModel with bias", "ASTModel"])
def test_attention_masks_are_refused(name, implementation):
    model = make_model(name)
    model.set_attn_implementation(implementation)
    inputs, tokens = make_inputs(name), TINY[name].prefix + TINY[name].patches
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[0, -1] = False
    if name in ("DINOv3ViTModel", "CLIPVisionModel"):  # these themselves need (B, 1, queries, N)
        mask = mask[:, None, None].expand(-1, -1, tokens, -1)
    masked = inputs | {"attention_mask": mask}
    heeded = not torch.equal(run(model, masked)["pooler_output"], run(model, inputs)["pooler_output"])
    insert_into(name, model, 3)
    message = "attention_mask was given to a merged model, but it speaks of the tokens before the merge"
    with pytest.raises(ValueError, match=message):
        run(model, masked)
    if heeded and name == "ViTModel":  # also where only the blocks see it
        for block in find_host(model).blocks[1:]:
            with pytest.raises(ValueError, match=message):
                block(torch.randn(2, tokens, 32), torch.ones(2, 1, tokens, tokens, dtype=torch.bool))
        with pytest.raises(ValueError, match=message):
            model(inputs["pixel_values"], None, False, mask)


def padded_inputs() -> dict[str, Tensor]:
    """An image of 4 × 4 patches and one of 3 × 4, with padding that is not zero."""
    inputs = make_inputs("Siglip2VisionModel")
    inputs["pixel_attention_mask"][1, 12:] = 0
    inputs["spatial_shapes"][1, 0] = 3
    return inputs


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


def test_a_mask_of_something_else_than_padding_is_refused():
    inputs = padded_inputs()
    inputs["pixel_attention_mask"] = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for name in ("Siglip2VisionModel", "Siglip2ForImageClassification"):
        with pytest.raises(ValueError, match=r"pixel_attention_mask has shape \(2, 1, 16, 16\), but a merged model"):
            run(insert(make_model(name), 3), inputs)
    model = insert(make_model("Siglip2VisionModel"), 3)
    with pytest.raises(ValueError, match=r"pixel_attention_mask has shape \(2, 1, 16, 16\), but a merged model"):
        model(*inputs.values())


# What is refused


def test_a_merger_reads_only_what_comes_after_the_prefix():
    with pytest.raises(ValueError, match="DeiTModel tells its first 2 tokens from patches by their place"):
        insert(make_model("DeiTModel"), 3, prefix="merge")
    with pytest.raises(ValueError, match=r"num_tokens \(17\) after block 2 is more than the 16 tokens that arrive"):
        insert(make_model("ViTModel"), 17)


def blank(name: str) -> Any:
    """A model of a class of transformers, without its parts."""
    cls = getattr(transformers, name)
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    return model


REFUSED = {
    "Dinov2Backbone": ("grid", "it gives feature maps"),
    "BeitBackbone": ("grid", "it gives feature maps"),
    "ViTForMaskedImageModeling": ("grid", "it predicts what was masked at each place of the image"),
    "BeitForMaskedImageModeling": ("grid", "it predicts what was masked"),
    "ViTMAEForPreTraining": ("grid", "it predicts what was masked"),
    "VideoMAEForPreTraining": ("grid", "it predicts what was masked"),
    "BeitForSemanticSegmentation": ("grid", "it predicts something for each place"),
    "Sapiens2ForPoseEstimation": ("grid", "it predicts something for each place"),
    "DPTForDepthEstimation": ("grid", "its tokens are put back into a grid"),
    "OwlViTForObjectDetection": ("grid", "its tokens are put back into a grid"),
    "CLIPSegForImageSegmentation": ("grid", "its tokens are put back into a grid"),
    "Llama4VisionModel": ("grid", "its tokens are put back into a grid"),
    "SamVisionModel": ("grid", "its blocks attend in windows of a grid"),
    "VitDetModel": ("grid", "its blocks attend in windows of a grid"),
    "VJEPA2Model": ("grid", "its blocks compute rotary positions in a grid"),
    "TimesformerModel": ("grid", "its blocks attend along time and along space in turn"),
    "SwinForImageClassification": ("not one sequence", "it is convolutional or hierarchical"),
    "ConvNextModel": ("not one sequence", "it is convolutional or hierarchical"),
    "PerceiverForImageClassificationLearned": ("not one sequence", "a fixed number of latents reads the image"),
    "ViltModel": ("not one sequence", "text and image tokens share its blocks"),
    "PixtralVisionModel": ("not one sequence", "the patches of all images of a batch stand in one sequence"),
    "XCLIPVisionModel": ("not one sequence", "its frames are encoded apart and then exchange tokens"),
    "MllamaVisionModel": ("not one sequence", "its tiles are padded"),
    "YolosModel": ("tied to N", "it adds positions for N tokens between its blocks"),
    "MLCDVisionModel": ("tied to N", "its rotary table has a row for the class token"),
    "ImageGPTForImageClassification": ("tied to N", "it predicts each pixel from those before it"),
    "LlavaForConditionalGeneration": ("tied to N", "its language model has a place for each image token"),
    "TimmWrapperForImageClassification": ("wrapped", r"it only wraps a model of timm; insert into its \.timm_model"),
    "VisionTextDualEncoderModel": ("wrapped", r"insert into its \.vision_model"),
    "VisionEncoderDecoderModel": ("wrapped", r"insert into its \.encoder"),
    "BertModel": ("unknown", "it is not known to be a plain Vision Transformer"),
    "CLIPTextModel": ("unknown", "it is not known to be a plain Vision Transformer"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(transformers, name)])
def test_refused_by_name(name):
    kind, reason = REFUSED[name]
    for call in (insert, remove, mergers):
        with pytest.raises(UnsupportedModelError, match=f"^{name} cannot take a merger: .*{reason}") as error:
            call(blank(name))
        assert error.value.kind == kind


def test_a_model_of_language_that_sees_is_refused():
    model = blank("LlavaModel")
    model.config = transformers.LlavaConfig()
    with pytest.raises(
        UnsupportedModelError, match=r"^LlavaModel cannot take a merger: its language model has a place"
    ):
        insert(model)


class MyViTModel(transformers.ViTModel):
    pass


class ViTModel(transformers.ViTModel):
    """A class of the same name, elsewhere."""


class MyTower(transformers.CLIPVisionModel):
    pass


class MyLayer(nn.Module):
    pass


def exchange(path: str, cls: type) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        part = find_host(model).blocks[1] if path == "a block" else model.get_submodule(path)
        part.__class__ = cls

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ViTModel", exchange("", MyViTModel), "^MyViTModel cannot take a merger: it is not known to be"),
        ("ViTModel", exchange("", ViTModel), "^ViTModel cannot take a merger: it is not known to be a plain Vision"),
        ("CLIPModel", exchange("vision_model", MyTower), "^CLIPModel .* no CLIPVisionModel or CLIPVisionTransformer"),
        ("ViTModel", exchange("a block", MyLayer), "block 2 is a MyLayer, not known .*; supported are ViTLayer"),
    ],
)
def test_models_that_are_not_what_they_were_are_refused(name, change, message):
    model = make_model(name)
    change(model)
    with pytest.raises(UnsupportedModelError, match=message):
        insert(model)


@pytest.mark.parametrize("path", ["", "vision_model", "vision_model.head", "vision_model.encoder.layers.2"])
def test_a_forward_that_another_tool_patched_is_refused(path):
    model = make_model("Siglip2ForImageClassification")
    part = model.get_submodule(path)
    part.forward = functools.partial(part.forward)
    with pytest.raises(UnsupportedModelError, match="has a forward of its own in its __dict__"):
        insert(model)


def test_blocks_wrapped_by_another_tool_are_refused():
    model = make_model("CLIPVisionModel")
    encoder = getattr(model, "vision_model", model).encoder
    encoder.layers = torch.compile(encoder.layers, backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"its blocks are a OptimizedModule, not the nn\.ModuleList"):
        insert(model)


def test_transformers_is_not_imported_without_need():
    program = """
import sys, timm, patchmerger
patchmerger.insert(timm.create_model("vit_tiny_patch16_224", depth=2))
import torch
try:
    patchmerger.insert(torch.nn.Linear(1, 1))
except patchmerger.UnsupportedModelError:
    print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
