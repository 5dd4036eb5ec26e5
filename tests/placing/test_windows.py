"""What placed tokens see: the plain model's at the grid, and by independent loops anywhere."""

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images, make_timm, make_vit
from patchmerger import place, unplace
from patchmerger.mechanism.placed_tokens import between_patches
from patchmerger.placing import positions_given, positions_in
from patchmerger.placing.embedding import sample_windows

pytestmark = pytest.mark.usefixtures("one_thread")

ROTARY = {
    "axial": ("vit_small_patch16_rope_224", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {"class_token": False, "global_pool": "avg"}),
    "with absolute": ("vit_small_patch16_rope_ape_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
}


def make_rotary(kind: str, **kwargs) -> nn.Module:
    architecture, arguments = ROTARY[kind]
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return make_timm(architecture, **{**sizes, **arguments, **kwargs})


def some_positions(*shape: int, seed: int = 3) -> Tensor:
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_at_the_grid_tokens_are_those_of_the_plain_model(variant):
    model, images = make_vit(variant, img_size=40).double(), make_images(2, 40).double()
    expected = model(images)
    torch.testing.assert_close(place(model, 25, "grid")(images), expected, rtol=0, atol=1e-12)
    model, images = unplace(model).float(), images.float()
    torch.testing.assert_close(place(model, 25, "grid")(images), unplace(model)(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ROTARY)
def test_at_the_grid_rotary_positions_are_those_of_the_plain_model(kind):
    model, images = make_rotary(kind).double(), make_images(2, 48).double()
    expected = model(images)
    # timm makes the tables in float32
    torch.testing.assert_close(place(model, 36, "grid")(images), expected, rtol=0, atol=1e-8)
    model, images = unplace(model).float(), images.float()
    torch.testing.assert_close(place(model, 36, "grid")(images), unplace(model)(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 48), (48, 24), (40, 40)])
def test_images_of_another_size(size):
    model = make_vit(dynamic_img_size=True).double()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, grid = model(images), (size[0] // 8, size[1] // 8)
    place(model, 16, "grid")
    model.patch_embed.placement.settings = type(model.patch_embed.placement.settings)(grid[0] * grid[1], "grid")
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)


def test_a_size_that_patches_do_not_fill():
    """Positions are shares of what the patches cover: 40 of 43 pixels."""
    model, images = make_vit(img_size=43).double(), make_images(1, 43).double()
    expected = model(images)
    torch.testing.assert_close(place(model, 25, "grid")(images), expected, rtol=0, atol=1e-12)


def pixel(image: Tensor, row: float, column: float) -> Tensor:
    """The bilinear value at a place in pixels from the middle of the first one, by its definition."""
    height, width = image.shape[-2:]
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = min(int(row), height - 2), min(int(column), width - 2)
    down, right = row - top, column - left
    above = (1 - right) * image[:, top, left] + right * image[:, top, left + 1]
    below = (1 - right) * image[:, top + 1, left] + right * image[:, top + 1, left + 1]
    return (1 - down) * above + down * below


@pytest.mark.parametrize("window", [(4, 4), (6, 3), (9, 9)])
def test_windows_by_a_loop(window):
    images = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions, samples, size = some_positions(2, 5), (4, 4), (12, 16)
    shown = sample_windows(images, positions, size=size, window=window, samples=samples)
    for b in range(2):
        for n in range(5):
            for i in range(4):
                for j in range(4):
                    place = [
                        float(positions[b, n, axis]) * size[axis]
                        + (at + 0.5) * window[axis] / samples[axis]
                        - window[axis] / 2
                        - 0.5
                        for axis, at in enumerate((i, j))
                    ]
                    torch.testing.assert_close(shown[b, :, i, 4 * n + j], pixel(images[b], *place))


def test_position_embeddings_by_a_loop():
    model, images, positions = make_vit().double(), make_images().double(), some_positions(2, 6)
    table = model.pos_embed[0, 1:].T.reshape(32, 4, 4)
    place(model, 6)
    with positions_given(model, positions):
        tokens = model.patch_embed(images)
        embedded = model._pos_embed(tokens)
    torch.testing.assert_close(embedded[:, :1], (model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1))
    for b in range(2):
        for n in range(6):
            expected = tokens[b, n] + pixel(table, *(float(p) * 4 - 0.5 for p in positions[b, n]))
            torch.testing.assert_close(embedded[b, 1 + n], expected)


def test_between_patches_goes_on_in_a_straight_line():
    """The weights reproduce any function that is linear in the place, beyond the outer patches too."""
    positions, grid = torch.cat((some_positions(1, 20), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])), dim=1), (3, 5)
    weights = between_patches(positions, grid)
    middles = torch.cartesian_prod((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5).double()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 22, dtype=torch.float64))
    torch.testing.assert_close(weights @ middles, positions, rtol=0, atol=1e-6)
    assert between_patches(positions, (1, 1)).eq(1).all()


@pytest.mark.parametrize("kind", ["axial", "mixed", "DINOv3"])
def test_rotary_positions_between_and_beyond_patches(kind):
    """Half way the rotation is half of both; half a patch beyond the first one, half a step before it."""
    model, images, seen = make_rotary(kind), make_images(2, 48), []
    model.blocks[1].register_forward_pre_hook(lambda _, __, given: seen.append(given["rope"]), with_kwargs=True)
    model(images)
    middle, edge = 1 / 6, 0.5 / 6  # between the first two rows; the first column
    place(model, positions=[[middle, edge], [0.0, edge]])
    model(images)
    plain, placed = (torch.complex(*reversed(table.chunk(2, dim=-1))) for table in seen)
    first, second = plain[..., 0, :], plain[..., 6, :]
    torch.testing.assert_close(placed[0, ..., 0, :].squeeze(0) ** 2, (first * second).squeeze(0))
    torch.testing.assert_close(placed[0, ..., 1, :].squeeze(0) ** 2, (first**3 * second.conj()).squeeze(0))


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_rotary_positions_are_exact_under_autocast(kind):
    model, images, seen = place(make_rotary(kind), 9), make_images(2, 48), []
    model.blocks[0].register_forward_pre_hook(lambda _, __, given: seen.append(given["rope"]), with_kwargs=True)
    model(images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("make", [make_vit, lambda **kw: make_rotary("axial", **kw)])
def test_gradients_to_positions_against_finite_differences(make):
    model, images = make(img_size=48, depth=2, embed_dim=16).double(), make_images(1, 48).double()
    place(model, 3)

    def loss(given: Tensor) -> Tensor:
        with positions_given(model, given):
            return model(images).square().sum()

    assert torch.autograd.gradcheck(loss, some_positions(1, 3).requires_grad_(), eps=1e-7, atol=1e-5)


def test_a_window_of_another_size_sees_more():
    """A window of the whole image, sampled at a patch's pixels, shows the image shrunk."""
    model, images = make_vit(), torch.linspace(0, 1, 32).expand(1, 3, 32, 32).contiguous()
    place(model, 1, "grid", window=32)
    shown = []
    model.patch_embed.proj.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    model(images)
    torch.testing.assert_close(shown[0][0, 0, 0], torch.nn.functional.avg_pool1d(images[0, :1, 0], 4)[0])


def test_half_precision_moves_no_token():
    model = place(make_vit(), 9, "sobol")
    expected = positions_in(model, make_images())
    model.to(torch.bfloat16)
    assert model.patch_embed.placement.points.dtype == torch.float32
    assert torch.equal(positions_in(model, make_images().bfloat16()), expected)
    assert model(make_images().bfloat16()).isfinite().all()


@pytest.mark.parametrize("number", [2, 9, 16])
def test_half_precision_sees_what_float32_sees(number):
    """oneDNN's bf16 convolution with an output one column wide is wrong on processors with AMX: there is none here."""
    model = place(make_vit(), number, "sobol")
    expected = model.patch_embed(make_images()).detach()
    tokens = model.to(torch.bfloat16).patch_embed(make_images().bfloat16())
    torch.testing.assert_close(tokens.float(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
