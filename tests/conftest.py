"""Tiny Vision Transformers with fixed weights: timm's real architectures, made narrow and shallow."""

import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
NUM_PATCHES = 16

# name → (timm's architecture, arguments beside SIZE)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_small_patch16_224", {}),
    "average pooling": ("vit_base_patch16_siglip_gap_224", {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "registers, LayerScale": ("vit_base_patch14_reg4_dinov2", {}),
    "registers, average pooling": ("vit_betwixt_patch16_reg4_gap_256", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "class token without position": ("deit3_small_patch16_224", {}),
    "pre-norm, quick GELU": ("vit_base_patch16_clip_quickgelu_224", {}),
    "post-norm": ("vit_base_patch16_rpn_224", {}),
    "parallel blocks": ("vit_base_patch16_xp_224", {}),
    "differential blocks": ("vit_dpwee_patch16_reg1_gap_256", {}),
    "parallel things": ("vit_small_patch16_18x2_224", {}),
    "SwiGLU": ("aimv2_large_patch14_224", {}),
    "pooling with prefix": ("vit_betwixt_patch16_reg4_gap_256", {"pool_include_prefix": True}),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", help="Run files, and the tests of each file, in a random order.")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("--shuffle")
    return None if seed is None else f"random order: --shuffle {seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle")
    if seed is not None:
        draw = random.Random(seed)
        files: dict[str, list[pytest.Item]] = {}
        for item in items:
            files.setdefault(str(item.path), []).append(item)
        for file in (shuffled := draw.sample(list(files.values()), len(files))):
            draw.shuffle(file)
        items[:] = [item for file in shuffled for item in file]


def make_vit(variant: str = "class token", **kwargs: Any) -> nn.Module:
    """A tiny Vision Transformer of the given variant, as :func:`make_timm` makes it."""
    architecture, extra = VARIANTS[variant]
    return make_timm(architecture, **{**SIZE, **extra, **kwargs})


def make_timm(architecture: str, **kwargs: Any) -> nn.Module:
    """A model of timm in eval mode; fixed weights, none of them near zero, so that every part of it counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(architecture, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.is_meta:
                    parameter.add_(torch.randn(parameter.shape).to(parameter), alpha=0.1)
    return model.eval()


def make_images(number: int = 2, size: int = 32) -> Tensor:
    """Fixed random images."""
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Fixed random tokens."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Each variant in turn."""
    return str(request.param)


@pytest.fixture
def vit() -> nn.Module:
    """The plainest: a class token, 16 patches, 4 blocks of width 32."""
    return make_vit()


@pytest.fixture
def images() -> Tensor:
    """Two fixed random images of 32 × 32."""
    return make_images()


@pytest.fixture(scope="session", autouse=True)
def digits_are_decoded_once() -> Iterator[None]:
    """Nearly every training here is on the digits, whose 1,797 images take longer than a step."""
    from patchmerger.data import loading

    load_sets = loading.load_sets
    decoded = functools.cache(lambda data: load_sets(loading.open_source(data).splits, data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loading,
            "load_sets",
            lambda splits, data: decoded(data) if data.source == "digits" else load_sets(splits, data),
        )
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small are several times slower where threads wait for each other on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compiled graphs are kept by the process: one test's must not be another's."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
