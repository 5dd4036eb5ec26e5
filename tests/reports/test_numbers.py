"""What tables say of intervals that leave training noise out, and of the model."""

from patchmerger.reports.parts.numbers import (
    count_text,
    epochs_text,
    interval_heading,
    left_out_text,
    model_name,
    model_text,
    speed_text,
    uncertain_text,
)
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import over_images, over_seeds

ONE_SEED = to_json(over_images([True, False, True], [True, True, False]))
SEEDS = to_json(over_seeds([0.9, 0.8], [0.8, 0.8]))


def test_an_interval_of_one_seed_says_what_it_leaves_out():
    assert interval_heading("plain", [None, ONE_SEED]) == "− plain, points\n[95% interval, one seed]"
    text = left_out_text([None, ONE_SEED, SEEDS])
    assert text is not None
    assert "training noise (one seed)" in text


def test_an_interval_over_seeds_leaves_nothing_out():
    assert interval_heading("plain", [None, SEEDS]) == "− plain, points\n[95% interval]"
    assert left_out_text([None, SEEDS]) is None


def test_a_model_in_words():
    assert model_text({"name": "vit_x", "args": {"img_size": 32, "depth": 6, "qk_norm": True}}) == (
        "vit_x (32 pixels, 6 blocks)"
    )
    assert model_text({"name": None, "args": {}}) == "the default small ViT"
    assert (
        model_text({"name": None, "args": {"img_size": 70}}, "runs/plain") == "trained weights (runs/plain), 70 pixels"
    )
    names = ("/runs/vit/model", "runs/vit/model", "~/runs/vit", "owner/vit", ".")
    assert [model_name(name) for name in names] == ["vit", "vit", "vit", "owner/vit", "."]


def test_uncertain_speeds_say_why():
    few, wide, sure = ({"uncertain": reason} for reason in ("only 3 rounds", "wide quartiles", None))
    text = uncertain_text([("a", few), ("b", few), ("c", wide), ("d", sure)])
    assert text == "Uncertain speed-ups: a, b (only 3 rounds); c (wide quartiles)."
    assert uncertain_text([("d", sure)]) is None
    assert (speed_text({"speedup": 1.5, **few}), speed_text({"speedup": 1.5, **sure})) == ("1.50?", "1.50")


def test_a_length_in_epochs_keeps_whole_ones():
    texts = [epochs_text(epochs) for epochs in (0.0, 0.278, 1.0, 1.04, 12.4, 1500.0)]
    assert texts == ["0 epochs", "0.28 epochs", "1 epoch", "1 epoch", "12 epochs", "1,500 epochs"]


def test_numbers_of_parameters_to_three_digits():
    counts = (999, 1_000, 85_798_656, 999_499, 999_500, 999_960_000)
    assert [count_text(count) for count in counts] == ["999", "1k", "85.8M", "999k", "1M", "1G"]
