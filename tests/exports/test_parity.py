import numpy as np
import pytest

from patchmerger.exports import ExportSettings, ParityError
from patchmerger.exports.parity import compare_logits, compare_probabilities, in_batches

EAGER = np.array([[0.0, 2.0], [1.0, -1.0], [4.0, 0.0], [0.0, 1.0]], np.float32)


def compare(found: np.ndarray, *, real: bool = True):
    return compare_logits(found, EAGER, source="images of noise", real=real, batches=(1, 3))


def test_differences_and_agreement_are_those_of_a_plain_loop():
    found = EAGER + np.array([[0.5, 0.0], [0.0, 0.25], [0.0, 0.0], [3.0, 0.0]], np.float32)
    parity = compare(found)
    rows = [abs(float(a) - float(b)) for f, e in zip(found, EAGER, strict=True) for a, b in zip(f, e, strict=True)]
    assert (parity.largest, parity.mean) == (max(rows), sum(rows) / len(rows))
    assert parity.agreement == 3 / 4
    assert parity.relative == pytest.approx(3.0 / EAGER.std())


def test_beyond_the_tolerance_is_refused():
    compare(EAGER).check(ExportSettings())
    with pytest.raises(ParityError, match=r"largest difference.* is 0.5.*max_difference is 0.001") as caught:
        compare(EAGER + 0.5).check(ExportSettings())
    assert caught.value.parity.largest == 0.5
    swapped = ExportSettings(max_difference=10.0, min_agreement=0.9)
    with pytest.raises(ParityError, match=r"same class.* 0.0%.*min_agreement is 0.9"):
        compare(EAGER[:, ::-1]).check(swapped)
    compare(EAGER[:, ::-1], real=False).check(swapped)  # of noise, the class on top means nothing


def test_no_number_is_no_parity():
    with pytest.raises(ParityError, match="nan"):
        compare(EAGER * np.float32("nan")).check(ExportSettings(min_agreement=0.0, max_difference=float("inf")))
    with pytest.raises(ParityError, match="nan"):
        compare(EAGER * np.float32("nan")).check(ExportSettings(min_agreement=0.0, max_difference=1e9))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4, 2\)"):
        compare(EAGER[:, :1])


def test_batches_are_of_1_3_and_32():
    images = np.arange(40, dtype=np.float32).reshape(40, 1)
    seen: list[int] = []

    def run(batch):
        seen.append(len(batch))
        return batch

    outputs, sizes = in_batches(run, images, dynamic=True)
    assert (seen, sizes) == ([1, 3, 32, 4], (1, 3, 32, 4))
    np.testing.assert_array_equal(outputs, images)
    seen.clear()
    assert in_batches(run, images[:5], dynamic=False)[1] == (1,)
    assert seen == [1] * 5


def test_a_batch_size_that_was_fixed_is_seen():
    with pytest.raises(ValueError, match="batch of 3 images gave 1 outputs"):
        in_batches(lambda batch: batch[:1], np.zeros((40, 2), np.float32), dynamic=True)


def compare_softmax(eager: np.ndarray, logits: np.ndarray):
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float32))  # as a runtime computes it
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return compare_probabilities(probabilities, eager, source="images of noise", real=True, batches=(1, 3))


def test_probabilities_keep_all_of_the_logits_but_one_number_an_image():
    same = compare_softmax(EAGER, EAGER + np.arange(4, dtype=np.float32)[:, None])
    assert same.largest < 1e-6
    assert same.spread == pytest.approx((EAGER - EAGER.mean(axis=1, keepdims=True)).std())
    other = EAGER.copy()
    other[2] = [0.0, 4.0]
    assert compare_softmax(EAGER, other).largest == pytest.approx(4.0, abs=0.02)  # log p of 0.018 and 0.982
    assert compare_softmax(EAGER, other).agreement == 3 / 4


def test_probabilities_that_a_softmax_loses_are_alike():
    wide = np.array([[0.0, -300.0, -5.0, -80.0], [120.0, 0.0, 119.0, 60.0]], np.float32)
    parity = compare_softmax(wide, wide)
    assert parity.largest < 1e-4
    assert parity.spread > 50
    wrong = wide.copy()
    wrong[0, 1] = -10.0
    assert compare_softmax(wide, wrong).largest > 50
