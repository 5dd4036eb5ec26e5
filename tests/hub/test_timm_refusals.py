"""Options that do not fit, and models of timm that could not be built again: nothing is written."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from conftest import make_images, make_vit
from patchmerger.data import Preprocessing
from patchmerger.hub import load, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names has 2 names, but the model has 5 classes"),
        ({"class_names": "abcde"}, r"class_names \('abcde'\) must be a sequence of strings"),
        ({"class_names": [0, 1, 2, 3, 4]}, "must be a sequence of strings"),
        ({"preprocessing": Preprocessing((0.5,) * 2, (0.5,) * 2)}, "a mean of 2 values .*3 channels"),
        ({"model_args": {"num_classes": 9}}, "num_classes=9 disagrees with the current model"),
        ({"model_args": {"colour": "red"}}, r"timm .* cannot make 'vit_small_patch16_224' with the model_args.*colour"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError, match=message):
        save(make_vit(), folder, **options)
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []


def shallower(model: nn.Module) -> None:
    model.blocks = model.blocks[:3]


def other_heads(model: nn.Module) -> None:
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 4, 8, 8**-0.5


def other_activation(model: nn.Module) -> None:
    model.blocks[3].mlp.act = nn.ReLU()


def other_eps(model: nn.Module) -> None:
    model.blocks[0].norm1.eps = 1e-5


def other_forward(model: nn.Module) -> None:
    forward = model.blocks[2].forward
    model.blocks[2].forward = lambda x: 1.01 * forward(x)


def other_head(model: nn.Module) -> None:
    model.head = nn.Linear(32, 9)


def other_parameter(model: nn.Module) -> None:
    model.extra = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("hidden", [False, True], ids=["", "hidden by a head of zeros"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shallower, r"unexpected weights|missing weights: blocks\.3"),
        (other_heads, r"blocks\.0\.attn\.num_heads = 2, not 4; say in model_args"),
        (other_activation, r"a GELU as blocks\.3\.mlp\.act, not a ReLU"),
        (other_eps, r"blocks\.0\.norm1\.eps = 1e-06, not 1e-05"),
        (other_forward, r"other outputs \(forward_features differs by"),
        (other_head, r"other shapes: head\.bias \(9,\) for \(5,\)"),
        (other_parameter, r"unexpected weights: extra"),
    ],
)
def test_changes_by_hand_are_refused(folder, change, message, hidden):
    model = insert(make_vit(), 4)
    change(model)
    if hidden:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    with pytest.raises(ValueError, match=message):
        save(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_model_args_say_what_was_changed_by_hand(folder):
    model = insert(make_vit(), 4)
    shallower(model)
    save(model, folder, model_args={"depth": 3})
    assert torch.equal(load(folder)(make_images()), model(make_images()))
    model = make_vit()
    other_heads(model)
    save(model, folder, model_args={"num_heads": 4}, overwrite=True)
    assert torch.equal(load(folder)(make_images()), model(make_images()))


def test_arguments_that_json_cannot_hold(folder):
    model = make_vit(block_fn=ParallelScalingBlock)
    with pytest.raises(ValueError, match="'block_fn' is not serializable; provide a model_args replacement"):
        save(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_a_model_that_gives_nan_is_refused(folder):
    model = make_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="forward_features of model gives values that are not finite"):
        save(model, folder)
