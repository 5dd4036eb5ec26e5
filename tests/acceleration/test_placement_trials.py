"""Several placements of the same speed-up: which is taken, untrained or recovered, and what cannot be compared."""

import pytest

from patchmerger import accelerate
from patchmerger.acceleration.settings import PlacementSettings
from patchmerger.data import DataSettings
from quick_acceleration import quick

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]


def test_the_placement_can_be_chosen_by_trials(folder, tmp_path, capsys):
    settings = quick(epochs=0.5, method="located")
    settings |= {"placement": PlacementSettings(1.3, candidates=2, compare="recovered", rounds=1), "progress": True}
    results = accelerate(folder, DataSettings("digits"), out=tmp_path / "run", **settings)
    tried = [line.split("%")[0].split() for line in capsys.readouterr().err.splitlines() if "held-out training" in line]
    assert len(tried) == 2
    assert str(results["placement"]["after"]) in {words[4].rstrip(":") for words in tried}


def test_of_placements_compared_untrained_the_latest_near_the_best_is_taken(folder, tmp_path, capsys):
    settings = quick(epochs=0.1, method="best")
    settings |= {"placement": PlacementSettings(1.3, candidates=3, rounds=1), "progress": True}
    place = accelerate(folder, DataSettings("digits"), out=tmp_path / "run", max_drop=90, **settings)["placement"]
    gaps = [found["divergence"] for found in place["compared"]]
    tried = [(found["after"], found["reducer"]) for found in place["compared"]]
    assert tried == [(2, "patchmerger"), (1, "patchmerger")]  # there are no more
    near = next(number for number, gap in enumerate(gaps) if gap <= 1.5 * min(gaps))
    assert tried[near] == (place["after"], place["reducer"])
    assert all(found["predicted"] >= 1.3 for found in place["compared"])
    assert capsys.readouterr().err.count("nats from the plain model, untrained") == 2


def test_without_a_recovery_a_method_that_works_untrained_is_taken_and_compared(folder, tmp_path):
    settings = quick(1.3, epochs=0.0, method="best")
    place = accelerate(folder, DataSettings("digits"), out=tmp_path / "run", **settings)["placement"]
    assert [found["reducer"] for found in place["compared"]] == ["dpcknn", "dpcknn"]
    assert all(found["divergence"] > 0 for found in place["compared"])


def test_what_is_drawn_says_nothing_untrained(folder, tmp_path):
    for reducer, changes, message in (
        ("patchmerger", {"method": "soft", "epochs": 0.1}, r"candidates \(3\) .*query_init \('soft'\)"),
        ("patchmerger", {"method": "best", "epochs": 0.0}, r"candidates \(3\) .*query_init \('reconstruction'\)"),
        ("tokenlearner", {"method": "best"}, r"candidates \(3\) .*reducer \('tokenlearner'\)"),
    ):
        settings = quick(**changes) | {"placement": PlacementSettings(1.3, candidates=3, rounds=1, reducer=reducer)}
        with pytest.raises(ValueError, match=message):
            accelerate(folder, DataSettings("digits"), out=tmp_path / "run", **settings)
    settings = quick(epochs=0.0) | {"placement": PlacementSettings(1.3, compare="recovered", rounds=1)}
    with pytest.raises(ValueError, match=r"compare \('recovered'\) needs a recovery, and epochs \(0\)"):
        accelerate(folder, DataSettings("digits"), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
