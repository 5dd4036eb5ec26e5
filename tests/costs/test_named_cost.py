"""The cost of a model that is found: by architecture, folder, run or file; merged or plain."""

import pytest
import timm
from safetensors.torch import save_file

from conftest import make_vit
from patchmerger.cli import main
from patchmerger.costs.model_cost import cost
from patchmerger.costs.named_cost import cost_of
from patchmerger.hub import save
from patchmerger.insertion import insert
from patchmerger.models.settings import MergeSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}


def test_an_architecture():
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL)
    assert cost_of("vit_tiny_patch16_224", None, args=SMALL) == cost(plain)
    merged = cost_of("vit_tiny_patch16_224", MergeSettings(num_tokens=4, after=3), args=SMALL, image_size=64)
    assert merged == cost(insert(plain, 4, after=3), 64)


def test_the_default_merger_has_the_positions_that_the_model_needs():
    found = cost_of("vit_relpos_small_patch16_224", args=SMALL)
    assert (found.tokens, found.tokens_out) == (16, 8)


def test_a_folder_is_counted_as_it_is(tmp_path):
    merged = insert(make_vit(), (9, 4), after=(1, 2))
    save(merged, tmp_path / "merged")
    assert cost_of(tmp_path / "merged") == cost(merged)
    assert cost_of(tmp_path / "merged", None) == cost(make_vit())
    with pytest.raises(ValueError, match=r"merge asks for a merger, but model \(.*merged\) has one"):
        cost_of(tmp_path / "merged", MergeSettings())
    save(make_vit(), tmp_path / "run" / "model")
    assert cost_of(tmp_path / "run") == cost(insert(make_vit(), 8))


def test_a_file_needs_its_architecture(tmp_path, capsys):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    small = {name: value for name, value in SMALL.items() if name != "num_classes"}
    found = cost_of(tmp_path / "weights.safetensors", None, architecture="vit_tiny_patch16_224", args=small)
    assert found == cost(model)
    assert main(["cost", str(tmp_path / "weights.safetensors")]) == 2
    assert "--architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("vit_tinny_patch16_224", {}, r"model \(vit_tinny_patch16_224\) is no folder here.*did you mean vit_tiny"),
        ("vit_tiny_patch16_224", {"architecture": "vit_tiny_patch16_224"}, r"architecture .* safetensors file"),
        ("vit_tiny_patch16_224", {"args": {"depht": 3}}, r"model.args .* do not fit .*depht"),
        ("resnet18", {}, "ResNet cannot take a merger"),
    ],
)
def test_what_cannot_be_counted(name, options, facts):
    with pytest.raises(ValueError, match=facts):
        cost_of(name, **options)
