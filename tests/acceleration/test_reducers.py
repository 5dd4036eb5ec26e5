"""Accelerations with another method in the merger's place."""

import pytest

from patchmerger import accelerate, load
from patchmerger.acceleration.settings import PlacementSettings, QueryInitSettings, RecoverySettings
from patchmerger.data import DataSettings
from patchmerger.insertion.inserted import mergers
from trained_on_digits import trained_vit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]


def settings(reducer: str, method: str = "best") -> dict:
    return {
        "placement": PlacementSettings(after=2, num_tokens=8, rounds=1, reducer=reducer),
        "query_init": QueryInitSettings(method, images=64),
        "recovery": RecoverySettings(steps=4, accelerator="cpu", batch_size=64),
        "progress": False,
        "max_drop": 100.0,
    }


def test_a_method_that_works_inside_a_block(tmp_path):
    results = accelerate(trained_vit(), DataSettings(), out=tmp_path / "run", **settings("tome"))
    model = load(tmp_path / "run" / "model")
    (merger,) = mergers(model)
    assert (type(merger.module).__name__, merger.after, merger.inside_block) == ("ToMe", 3, True)
    assert results["placement"]["reducer"] == results["query_init"]["reducer"] == "tome"
    assert results["placement"]["after"] == 2


def test_queries_mean_nothing_to_another_method(tmp_path):
    with pytest.raises(ValueError, match=r"query_init \('soft'\) means nothing to reducer \('average'\)"):
        accelerate(trained_vit(), DataSettings(), out=tmp_path / "run", **settings("average", "soft"))
    with pytest.raises(ValueError, match=r"reducer \('tom'\) must be one of"):
        PlacementSettings(reducer="tom")
