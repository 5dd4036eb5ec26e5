"""Models in models: a wrapper is refused by a message that names what it holds; PEFT is known by name."""

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from conftest import make_images, make_vit
from hosts.own import MyViT
from patchmerger import UnsupportedModelError, cost, insert, load, mergers, remove, save
from patchmerger.hosts.registry import supported_inside

pytestmark = pytest.mark.usefixtures("one_thread")


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"teacher": make_vit(), "own": MyViT()})
        self.student = nn.Sequential(make_vit(), nn.Linear(5, 2))


class Mine(type(make_vit())):
    """A subclass of timm's, whose forward may be another."""


def lightning_module() -> nn.Module:
    lightning = pytest.importorskip("lightning")
    module = lightning.LightningModule()
    module.net = make_vit()
    return module


HOLDERS = {
    "nn.Sequential": (lambda: nn.Sequential(make_vit(), nn.Linear(5, 2)), ["0"]),
    "several": (Wrapper, ["model.teacher", "student.0"]),
    "Lightning": (lightning_module, ["net"]),
    "segmentation": (lambda: DeepLabV3(nn.Sequential(make_vit()), nn.Identity()), ["backbone.0"]),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_the_model_inside_is_named(name):
    make, paths = HOLDERS[name]
    holder = make()
    with pytest.raises(UnsupportedModelError, match=f"pass model.{paths[0]}") as error:
        insert(holder, 4)
    assert error.value.inside == tuple(paths)
    for path in error.value.inside:
        assert len(mergers(insert(holder.get_submodule(path), 4))) == 1


def test_nothing_is_named_where_nothing_inside_can():
    for model in (nn.Sequential(nn.Linear(2, 2)), MyViT()):
        with pytest.raises(UnsupportedModelError, match="register_host") as error:
            insert(model, 4)
        assert error.value.inside == ()


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_what_needs_all_tokens_is_not_opened():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    masked = transformers.ViTForMaskedImageModeling(config)
    with pytest.raises(UnsupportedModelError, match="masked at each place") as error:
        insert(masked, 4)
    assert error.value.inside == ()
    assert supported_inside(nn.Sequential(masked, transformers.ViTModel(config))) == ["1"]


def test_a_traced_graph():
    with pytest.raises(UnsupportedModelError, match="traced graph; pass the model that was traced"):
        insert(torch.fx.symbolic_trace(nn.Linear(2, 2)), 4)


# PEFT


def adapted(model: nn.Module, wrapper: str = "PeftModel", **options: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about models that are not of transformers
        config = peft.LoraConfig(r=2, target_modules=["qkv"], **options)
        return peft.get_peft_model(model, config, mixed=wrapper == "PeftMixedModel")


def test_what_peft_left_wrapped_is_named(tmp_path):
    """As after LN tuning, whose merge_and_unload leaves the modules to save in their wrappers."""
    peft = pytest.importorskip("peft")
    config = peft.LNTuningConfig(target_modules=["norm1"], modules_to_save=["merger"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(insert(make_vit(), 4), config).eval()
    merged = model.merge_and_unload()
    with pytest.raises(ValueError, match=r"set_submodule\('blocks\.1\.merger', .*\.modules_to_save\['default'\]\)"):
        save(merged, tmp_path / "model")
    whole = merged(make_images())
    merged.set_submodule("blocks.1.merger", merged.get_submodule("blocks.1.merger").modules_to_save["default"])
    save(merged, tmp_path / "model")
    torch.testing.assert_close(load(tmp_path / "model")(make_images()), whole)


def test_a_merger_that_no_adapter_would_hold_is_named():
    for wrapper in ("PeftModel", "PeftMixedModel"):
        model = adapted(insert(make_vit(), 4), wrapper)
        assert_named(model)


def assert_named(model):
    with pytest.warns(UserWarning, match=r"blocks\.1\.merger is in no adapter .* modules_to_save=\['merger'\]"):
        (found,) = mergers(model)
    assert found.name == "base_model.model.blocks.1.merger"


def test_an_adapter_with_its_merger():
    plain, images = make_vit(), make_images()
    model = adapted(insert(copy.deepcopy(plain), 4), modules_to_save=["merger"]).train()
    (found,) = mergers(model)
    assert (found.after, found.num_tokens, type(found.module).__name__) == (2, 4, "PatchMerger")
    with pytest.raises(ValueError, match=r"has adapters of PEFT.*give model.merge_and_unload\(\)"):
        cost(model)
    model(images).square().sum().backward()
    assert found.module.weight.grad is not None
    whole = model.eval()(images)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(images), whole)
    assert [one.name for one in mergers(merged)] == ["blocks.1.merger"]
    assert cost(merged).flops == cost(insert(copy.deepcopy(plain), 4)).flops
    assert torch.equal(remove(merged)(images), plain(images))


def test_nothing_is_put_in_or_taken_out_beside_an_adapter():
    model = adapted(make_vit())
    for part in (model, model.get_base_model(), nn.Sequential(model)):
        with pytest.raises(UnsupportedModelError, match=r"PEFT.*merge_and_unload\(\).*modules_to_save=\['merger'\]"):
            insert(part, 4)
    merged = adapted(insert(make_vit(), 4), modules_to_save=["merger"])
    for part in (merged, merged.get_base_model()):
        with pytest.raises(UnsupportedModelError, match=r"merge_and_unload\(\)"):
            remove(part)
    assert len(mergers(insert(model.merge_and_unload(), 4))) == 1
