"""What of transformers cannot take a merger is refused with a reason, and so are masks that a merge makes wrong."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

transformers = pytest.importorskip("transformers", reason="an optional dependency")

from hosts.tiny import TINY, insert_into, make_inputs, make_model, padded_inputs, run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_relative_bias_is_dropped_only_when_asked_for():
    for name in ("BeitModel with bias", "Data2VecVisionForImageClassification with both biases"):
        with pytest.raises(UnsupportedModelError, match=r"a relative position bias.*positions='drop' leaves"):
            insert(make_model(name), 3)
    shared = make_model("BeitModel", use_shared_relative_position_bias=True)
    if not hasattr(shared, "shared_position_bias"):
        pytest.skip("this version gives the bias to the blocks as such")
    with pytest.raises(UnsupportedModelError, match=r"^BeitModel cannot take a merger: .* share as an attention mask"):
        insert(shared, 3, positions="drop")


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


def test_a_mask_of_something_else_than_padding_is_refused():
    inputs = padded_inputs()
    inputs["pixel_attention_mask"] = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    for name in ("Siglip2VisionModel", "Siglip2ForImageClassification"):
        with pytest.raises(ValueError, match=r"pixel_attention_mask has shape \(2, 1, 16, 16\), but a merged model"):
            run(insert(make_model(name), 3), inputs)
    model = insert(make_model("Siglip2VisionModel"), 3)
    with pytest.raises(ValueError, match=r"pixel_attention_mask has shape \(2, 1, 16, 16\), but a merged model"):
        model(*inputs.values())


# Options and models


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
