"""The named variants: what each changes of the recipe, and that all can be built."""

import pytest

from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reducers.names import METHODS
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
