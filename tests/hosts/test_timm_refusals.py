"""What of timm cannot take a merger is refused, each with a reason that is true of it."""

import functools

import pytest
import timm
from torch import nn

from hosts.families import FAMILIES, make_family
from patchmerger.hosts import UnsupportedModelError, refused
from patchmerger.hosts.timm.supported import SUPPORTED
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.runs.meta_device import meta_device

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONAL = "it is built on convolutions over feature maps"
HYBRID = "its stages mix convolutions and attention on maps of shrinking size"
HIERARCHICAL = "its stages work on grids of shrinking size"

# A small architecture of each kind of reason, and more of those that look like plain Vision Transformers.
REFUSED = {
    "resnet10t": ("not one sequence", CONVOLUTIONAL),
    "convnext_atto": ("not one sequence", CONVOLUTIONAL),
    "convmixer_768_32": ("not one sequence", CONVOLUTIONAL),
    "mobilevit_xxs": ("not one sequence", CONVOLUTIONAL),
    "fastvit_t8": ("not one sequence", CONVOLUTIONAL),
    "tiny_vit_5m_224": ("not one sequence", HYBRID),
    "test_maxvit": ("not one sequence", HYBRID),
    "visformer_tiny": ("not one sequence", HYBRID),
    "efficientvit_m0": ("not one sequence", HYBRID),
    "swin_tiny_patch4_window7_224": ("not one sequence", HIERARCHICAL),
    "pvt_v2_b0": ("not one sequence", HIERARCHICAL),
    "mvitv2_tiny": ("not one sequence", HIERARCHICAL),
    "hiera_tiny_224": ("not one sequence", HIERARCHICAL),
    "hieradet_small": ("not one sequence", HIERARCHICAL),
    "levit_128s": ("not one sequence", HIERARCHICAL),
    "pit_ti_224": ("not one sequence", HIERARCHICAL),
    "volo_d1_224": ("not one sequence", HIERARCHICAL),
    "coat_lite_tiny": ("not one sequence", HIERARCHICAL),
    "crossvit_9_240": ("not one sequence", "its two branches cut the image into patches of two sizes"),
    "tnt_s_patch16_224": ("not one sequence", "its blocks run two streams, of patches and of the pixels in them"),
    "mixer_s32_224": ("tied to N", "its layers have a weight for each place of a token"),
    "resmlp_12_224": ("tied to N", "its layers have a weight for each place of a token"),
    "gmlp_ti16_224": ("tied to N", "its layers have a weight for each place of a token"),
    "xcit_nano_12_p16_224": ("grid", "its blocks convolve over the grid of patches, and attend over channels"),
    "convit_tiny": ("grid", "its blocks work out a square grid from the number of tokens"),
    "samvit_base_patch16": ("grid", r"its blocks keep tokens as a grid \(B, H, W, D\) and cut it into windows"),
    "qwen3_vit_88m_enc": ("grid", "its projector joins neighbouring patches of the grid"),
    "gemma4_vit_167m_enc": ("grid", "its 'soft' pooling averages neighbouring patches of the grid"),
}


@functools.cache
def on_meta(architecture: str) -> nn.Module:
    with meta_device():
        return timm.create_model(architecture).eval()


@pytest.mark.parametrize("architecture", REFUSED)
def test_refused_with_the_reason(architecture):
    model, (kind, reason) = on_meta(architecture), REFUSED[architecture]
    before = [(type(m), sorted(vars(m))) for m in model.modules()]
    for call in (insert, remove, mergers):
        with pytest.raises(UnsupportedModelError, match=f"^{type(model).__name__} cannot take a merger: {reason}") as e:
            call(model)
        assert e.value.kind == kind
        assert "merge in a plain Vision Transformer" in str(e.value) or "make it with" in str(e.value)
    assert [(type(m), sorted(vars(m))) for m in model.modules()] == before


@pytest.mark.parametrize("architecture", [name for name, (_, why) in REFUSED.items() if why in (HYBRID, HIERARCHICAL)])
def test_their_grids_shrink(architecture):
    info = on_meta(architecture).feature_info
    info = info if isinstance(info, list) else info.info
    assert len({stage["reduction"] for stage in info}) > 1


def test_each_module_of_timm_is_either_taken_or_refused():
    """A family that timm adds is looked at before it counts as refused for a reason."""
    taken = {cls.__module__ for cls in SUPPORTED}
    unsupported = {f"timm.models.{name}" for one in refused.REFUSED["timm"] for name in one.families.split()}
    assert not taken & unsupported
    made_of_others = {"byoanet", "hardcorenas", "mobilevit", "res2net", "resnest", "sknet"}
    made_of_others |= {"vision_transformer_hybrid", "vitamin"}
    listed = set(timm.list_modules()) - {"zoo"}  # ours, where it was imported
    known = {module.removeprefix("timm.models.") for module in taken | unsupported}
    assert listed - known == made_of_others
    for module in made_of_others:
        model = on_meta(timm.list_models(module=module)[0])
        assert type(model).__module__ in taken | unsupported


@pytest.mark.parametrize("name", ["EVA", "BEiT", "CaiT", "NaFlex average", "relative", "Qwen3", "Gemma 4"])
def test_subclasses_are_refused(name):
    model = make_family(name)
    model.__class__ = type("MyModel", (type(model),), {})
    with pytest.raises(UnsupportedModelError, match=r"^MyModel cannot take a merger: it is not known to be a plain"):
        insert(model, 4, positions=FAMILIES[name].positions)


@pytest.mark.parametrize("name", ["EVA", "BEiT", "CaiT", "NaFlex average", "relative", "Qwen3", "Gemma 4"])
def test_blocks_that_another_tool_exchanged_are_refused(name):
    model = make_family(name)
    blocks = getattr(model, "encoder", model).blocks
    blocks[2] = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="block 3 is a Identity, not known to run on any number of tokens"):
        insert(model, 4, positions=FAMILIES[name].positions)
    blocks[2] = blocks[1]
    with pytest.raises(UnsupportedModelError, match="a block stands in it more than once"):
        insert(model, 4, positions=FAMILIES[name].positions)
