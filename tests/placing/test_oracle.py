"""The oracle: no image gets worse, the model stays as it is, and what it says names its labels."""

import pytest
import torch
import torch.nn.functional as F

from conftest import make_images, make_vit
from patchmerger import place, spot_oracle
from patchmerger.placing import positions_given, positions_in

pytestmark = pytest.mark.usefixtures("one_thread")

TARGETS = torch.tensor([1, 4, 0])


def test_every_image_is_at_its_lowest_loss():
    model, images = place(make_vit(img_size=40), 6).train(), make_images(3, 40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = spot_oracle(model, images, TARGETS, steps=8, lr=0.02)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (found.loss <= found.initial_loss).all()
    assert (found.loss < found.initial_loss - 1e-3).any()
    assert found.positions.min() >= 0
    assert found.positions.max() <= 1
    model.eval()
    assert torch.equal(found.initial_positions, positions_in(model, images))
    with positions_given(model, found.positions):
        scores = model(images)
    torch.testing.assert_close(F.cross_entropy(scores, TARGETS, reduction="none"), found.loss)
    assert torch.equal(scores.argmax(dim=1) == TARGETS, found.correct)
    alone = spot_oracle(model, images[1:2], TARGETS[1:2], steps=8, lr=0.02)
    torch.testing.assert_close(alone.positions[0], found.positions[1], rtol=0, atol=1e-4)


def test_it_says_that_it_uses_labels():
    found = spot_oracle(place(make_vit(), 4), make_images(2), TARGETS[:2], steps=1)
    assert "uses the labels" in str(found)
    assert "uses the labels" in found.warning
    assert "uses the labels" in spot_oracle.__doc__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 0}, r"steps \(0\)"), ({"lr": 0.0}, r"lr \(0.0\)"), ({"targets": torch.zeros(3)}, r"targets \(3,\)")],
)
def test_bad_input_is_refused(arguments, message):
    model, given = place(make_vit(), 4), {"targets": TARGETS[:2], **arguments}
    with pytest.raises(ValueError, match=message):
        spot_oracle(model, make_images(2), **given)


def test_a_model_without_placed_tokens_is_refused():
    with pytest.raises(ValueError, match="no placed tokens"):
        spot_oracle(make_vit(), make_images(2), TARGETS[:2])
