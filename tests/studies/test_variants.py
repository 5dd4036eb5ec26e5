"""The variants of a study: the shallow control."""

import timm

from patchmerger.costs.model_cost import cost
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.studies.variants import shallow_twin

SMALL = ModelSettings(
    "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 8, "num_heads": 2}
)


def test_the_shallow_twin_is_the_closest_in_flops():
    merged = cost(build_model(SMALL, MergeSettings(), num_classes=0)).flops
    twin = shallow_twin(SMALL, merged, depth=8)
    gaps = {
        depth: abs(cost(timm.create_model(SMALL.name, num_classes=0, **{**SMALL.args, "depth": depth})).flops - merged)
        for depth in range(1, 9)
    }
    assert twin.args["depth"] == min(gaps, key=gaps.__getitem__)
    assert 4 <= twin.args["depth"] <= 5
