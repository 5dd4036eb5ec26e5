"""Tiny models of the other libraries, and what is asked of every folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from conftest import make_images
from patchmerger.hosts.example_inputs import example_input
from patchmerger.hub import load, save

TRANSFORMERS = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TORCHVISION = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}


def make_torchvision(**kwargs: Any) -> VisionTransformer:
    """A tiny model of torchvision in eval mode."""
    return _fixed(lambda: VisionTransformer(**{**TORCHVISION, "num_classes": 5, **kwargs}))


def make_transformers(name: str = "ViTForImageClassification", **kwargs: Any) -> Any:
    """A tiny model of transformers in eval mode, by the name of its class; an argument of ``None`` is left out."""
    import transformers

    cls = getattr(transformers, name)
    arguments = {**TRANSFORMERS, "num_labels": 5, **kwargs}
    config = cls.config_class(**{key: value for key, value in arguments.items() if value is not None})
    return _fixed(lambda: cls(config))


def make_towers() -> Any:
    """CLIP, which compares images with texts, tiny, in eval mode."""
    import transformers

    text = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    tokens = {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 6}
    config = transformers.CLIPConfig(text_config=text | tokens, vision_config=dict(TRANSFORMERS), projection_dim=8)
    return _fixed(lambda: transformers.CLIPModel(config))


def _fixed(make: Callable[[], Any]) -> Any:
    """The same weights each time, none of them near zero, so that every part of the model counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def run(model: nn.Module) -> Tensor:
    """What a model of any library makes of the same two images."""
    if not type(model).__module__.startswith("transformers."):
        return model(make_images())
    output = example_input(model, batch_size=2, seed=1).run(model)
    return torch.cat([part.flatten() for part in output.values() if isinstance(part, Tensor)])


def assert_round_trip(model: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """Save and load ``model``; the folder, and the same model."""
    expected = run(model)
    assert save(model, folder, **options) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "a temporary folder was left behind"
    again = load(folder)
    assert not again.training
    assert torch.equal(run(again), expected)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    return again


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def change_config(folder: Path, **changes: object) -> None:
    """Change what ``config.json`` says."""
    (folder / "config.json").write_text(json.dumps({**read_config(folder), **changes}))


def split_weights(folder: Path) -> list[Path]:
    """Split the weights into two files with an index, as the Hugging Face Hub has them for large models."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    paths = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for path, part in zip(paths, parts, strict=True):
        save_file({name: weights[name] for name in part}, path)
    places = {name: path.name for path, part in zip(paths, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    return paths
