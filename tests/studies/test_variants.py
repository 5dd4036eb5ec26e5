"""The named variants: what each changes of the recipe, and that all can be built."""

import pytest
import torch

from patchmerger.hub import load, save
from patchmerger.insertion.inserted import mergers
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reducers.names import METHODS
from patchmerger.studies.settings import Variant
from patchmerger.studies.variants import READY, build_recipe, resolve_variants
from patchmerger.training.settings import Recipe

VIT = ModelSettings(
    "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
)


@pytest.mark.parametrize("preset", ["default", "located"])
def test_every_ready_made_variant_is_what_it_says_whatever_the_merger_is(preset):
    names = [name for name in READY if name not in METHODS or name == "average"]
    recipes = resolve_variants(names, Recipe(model=VIT), MergeSettings(num_tokens=4, after=3, preset=preset))
    built = {name: build_recipe(recipe, num_classes=2) for name, recipe in recipes.items()}
    found = {name: mergers(model) for name, model in built.items()}
    assert {name for name, of in found.items() if not of} == {"plain", "shallow"}
    assert all((m.after, m.num_tokens) == (3, 4) for of in found.values() for m in of)
    located = {name: getattr(of[0].module, "prior", None) is not None for name, of in found.items() if of}
    assert located == {"merged": preset == "located", "paper": False, "located": True, "average": False}
    assert recipes["paper"].merge.preset == "paper"
    assert len(built["shallow"].blocks) < 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "vit"
    torch.manual_seed(0)
    save(build_model(VIT, num_classes=3), folder)
    return folder


def test_variants_of_a_trained_model_begin_with_its_weights(trained):
    merge = MergeSettings(num_tokens=4, after=2)
    names = ["plain", "merged", "located", "average", "shallow"]
    recipes = resolve_variants(names, Recipe(init=trained), merge)
    built = {name: build_recipe(recipe, num_classes=2) for name, recipe in recipes.items()}
    weights = load(trained).state_dict()
    for name, model in built.items():
        assert [(m.after, m.num_tokens) for m in mergers(model)] == ([] if name in ("plain", "shallow") else [(2, 4)])
        own = {key: value for key, value in model.state_dict().items() if ".merger." not in key and "head" not in key}
        assert all(torch.equal(value, weights[key]) for key, value in own.items())
        assert model.head.out_features == 2
    assert len(built["shallow"].blocks) < 4


def test_variants_of_a_trained_model_that_do_not_fit_it(trained):
    merge = MergeSettings(num_tokens=4)
    own = {"deeper": Variant(model={"depth": 5})}
    with pytest.raises(ValueError, match=r"depth \(5\) must be one of the 4 blocks of init \(.*vit\)"):
        resolve_variants(own, Recipe(init=trained), merge)
    with pytest.raises(ValueError, match=r"model\.args \(embed_dim\) would make another model than init"):
        resolve_variants({"wide": Variant(model={"embed_dim": 32})}, Recipe(init=trained), merge)
    merged = trained.parent / "merged"
    save(build_recipe(Recipe(init=trained, merge=merge), num_classes=3), merged)
    with pytest.raises(ValueError, match=r"merge \(null\) asks for a plain model, but init \(.*merged\) has"):
        resolve_variants(["plain"], Recipe(init=merged, merge=None), merge)
