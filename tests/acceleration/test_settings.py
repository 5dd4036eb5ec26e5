"""What a user can say about an acceleration: checked where it is made, without torch."""

import pytest

from patchmerger.acceleration.settings import PlacementSettings, QueryInitSettings, RecoverySettings, seconds_of


@pytest.mark.parametrize(("text", "seconds"), [("10min", 600), ("90s", 90), ("2h", 7200), ("1.5 m", 90)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds
    assert RecoverySettings(budget=text).seconds == seconds


@pytest.mark.parametrize("budget", ["7s", "5min", "1h", "20h"])
def test_a_longer_budget_is_a_budget(budget):
    longer = RecoverySettings(budget=budget).three_times_as_long(1.0).removeprefix("--budget ")
    assert seconds_of(longer) == pytest.approx(3 * seconds_of(budget))


@pytest.mark.parametrize(("epochs", "longer"), [(0.1, 1), (0.4171, 1.25), (500.0, 1500)])
def test_a_longer_recovery_is_at_least_an_epoch(epochs, longer):
    assert float(RecoverySettings().three_times_as_long(epochs).removeprefix("--epochs ")) == longer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlacementSettings(speedup=2.0, after=2), r"speedup \(2\) and after \(2\)"),
        (lambda: PlacementSettings(speedup=1.0), r"speedup \(1.0\) must be above 1"),
        (lambda: PlacementSettings(compare="recovered", candidates=1), r"compare \('recovered'\) .* candidates \(1\)"),
        (lambda: PlacementSettings(num_tokens=0), r"num_tokens \(0\) must be at least 1"),
        (lambda: PlacementSettings(positions="middle"), r"positions \('middle'\) must be one of 'centroid'"),
        (lambda: QueryInitSettings("middle"), r"query_init \('middle'\) must be one of 'best'"),
        (lambda: QueryInitSettings(images=1), r"calibration_images \(1\) must be at least 2"),
        (lambda: RecoverySettings(epochs=1.0, budget="1min"), r"epochs \(1.0\) and budget \(1min\)"),
        (lambda: RecoverySettings(epochs=1.0, steps=3), r"epochs \(1.0\) and steps \(3\) bound the recovery"),
        (lambda: RecoverySettings(cache_gib=0), r"recovery.cache_gib \(0\) must be above 0"),
        (lambda: RecoverySettings(cache_dtype="int8"), r"recovery.cache_dtype \('int8'\) must be one of 'bfloat16'"),
        (lambda: RecoverySettings(views=0), r"recovery.views \(0\) must be at least 1"),
        (lambda: RecoverySettings(budget="soon"), r"budget \('soon'\) must be a time above 0 .* 10min"),
        (lambda: RecoverySettings(epochs=-1.0), r"epochs \(-1\) must be 0"),
        (lambda: RecoverySettings(scope="front"), r"recovery.scope \('front'\) must be one of 'rear'"),
        (lambda: RecoverySettings(lr=0.0), r"recovery.lr \(0.0\) must be above 0"),
        (lambda: RecoverySettings(warmup=1.0), r"recovery.warmup \(1.0\) must be a share"),
        (lambda: RecoverySettings(optimizer="adamm"), r"recovery.optimizer \('adamm'\) is not one of timm's"),
        (lambda: RecoverySettings(precision="64"), r"recovery.precision \('64'\) must be one of '32-true'"),
        (lambda: RecoverySettings(teacher_weight=0, feature_weight=0, label_weight=0), "not all 0"),
        (lambda: RecoverySettings(label_weight=1.0).weight_of_labels(False), r"label_weight \(1.0\) needs labels"),
        (
            lambda: RecoverySettings(teacher_weight=0, feature_weight=0).weight_of_labels(False),
            "leave the labels to learn from, and there are none",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_default_rate_falls_with_the_width():
    assert RecoverySettings().rate(64) == pytest.approx(3.125e-4)
    assert RecoverySettings().rate(768) == pytest.approx(2.6e-5, rel=0.01)


@pytest.mark.parametrize(
    ("length", "steps"), [({}, 20), ({"epochs": 0.5}, 10), ({"steps": 7}, 7), ({"epochs": 0.001}, 1)]
)
def test_lengths(length, steps):
    assert RecoverySettings(batch_size=10, **length).steps_for(205) == steps
