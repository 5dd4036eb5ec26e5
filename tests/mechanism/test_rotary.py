"""Rotary positions of merged tokens, against phases that are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchmerger.mechanism.rotary import Rope, grid_phases

pytestmark = pytest.mark.usefixtures("one_thread")


def affine(height: int, width: int, start: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Phases θ₀ + row · down + column · right, (…, height · width, d), of bands (…, d)."""
    rows = torch.arange(height, dtype=start.dtype).repeat_interleave(width)[:, None]
    columns = torch.arange(width, dtype=start.dtype).repeat(height)[:, None]
    return start[..., None, :] + rows * down[..., None, :] + columns * right[..., None, :]


def bands(*shape: int, seed: int = 0, largest: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start, down, right = (
        largest * (2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1) for _ in "sdr"
    )
    return start, down, right


def assert_read(read: Tensor, phases: Tensor, atol: float = 1e-4) -> None:
    """The same phases, up to one turn or more for a whole band."""
    turns = (read.double() - phases)[..., :1, :] / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=atol)
    torch.testing.assert_close(read.double() - 2 * math.pi * turns.round(), phases, rtol=0, atol=atol)


# Hypothesis uses the fixtures of one test for all its examples, which does no harm here.
@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_the_grid_is_read_off_the_table(height, width, seed):
    phases = affine(height, width, *bands(6, seed=seed))
    assert_read(grid_phases(phases.cos(), phases.sin()), phases)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1,)])
def test_leading_axes_have_bands_and_phases_of_their_own(shape):
    phases = affine(5, 7, *bands(*shape, 4))
    assert_read(grid_phases(phases.cos(), phases.sin()), phases)


def test_images_of_several_widths_with_padding_at_the_end():
    """Each row of the batch has its own grid; what is read of the padding is finite, and weighs nothing."""
    grids = ((3, 4), (1, 5), (6, 1), (2, 2), (1, 1))
    start, down, right = bands(4)
    cos, sin = torch.zeros(2, len(grids), 1, 12, 4, dtype=torch.float64)
    for i, (height, width) in enumerate(grids):
        phases = affine(height, width, start, down, right)
        cos[i, 0, : height * width], sin[i, 0, : height * width] = phases.cos(), phases.sin()
    read = grid_phases(cos, sin)
    assert read.isfinite().all()
    for i, (height, width) in enumerate(grids):
        assert_read(read[i, 0, : height * width], affine(height, width, start, down, right))


def test_the_highest_frequencies_of_large_grids():
    """One radian from patch to patch, as the first band of most models, over 64 × 64 patches."""
    frequencies = 10000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
    none = torch.zeros(8, dtype=torch.float64)
    axial = affine(64, 64, torch.zeros(16).double(), torch.cat((frequencies, none)), torch.cat((none, frequencies)))
    assert_read(grid_phases(axial.float().cos(), axial.float().sin()), axial)
    centred = axial / 32 - 2 * math.pi  # as DINOv3 has it: from −2π to 2π and less
    assert_read(grid_phases(centred.float().cos(), centred.float().sin()), centred)


def test_rounding_does_not_add_up():
    start, down, right = bands(8, largest=1.0)
    phases = affine(32, 32, start, down, right)
    read = grid_phases(phases.cos().bfloat16(), phases.sin().bfloat16())
    assert read.dtype == torch.float32
    assert_read(read, phases, atol=0.01)


def one_hot(count: int) -> Tensor:
    return torch.eye(count).expand(2, -1, -1)


def table(layout: str, phases: Tensor) -> dict[str, object]:
    cos, sin = phases.cos(), phases.sin()
    if layout == "sin|cos":
        return {"rope": torch.cat((sin, cos), dim=-1)}
    if layout == "(cos, sin)":
        return {"rope": (cos, sin)}
    return {"cos": cos, "sin": sin}


def cos_and_sin(layout: str, given: dict[str, object]) -> tuple[Tensor, Tensor]:
    if layout == "sin|cos":
        sin, cos = given["rope"].chunk(2, dim=-1)
        return cos, sin
    return given["rope"] if layout == "(cos, sin)" else (given["cos"], given["sin"])


LAYOUTS = ("sin|cos", "(cos, sin)", "cos, sin")


def rope(layout: str, leading: str = "heads") -> Rope:
    return Rope(("cos", "sin") if layout == "cos, sin" else ("rope",), layout, leading)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("leading", "before", "after"),
    [
        ("heads", (), (2, 1)),
        ("heads", (3,), (2, 3)),
        ("heads", (2, 1), (2, 1)),
        ("heads", (2, 3), (2, 3)),
        ("images", (2,), (2,)),
        ("images", (1,), (2,)),
    ],
)
def test_one_hot_weights_give_the_table_again(layout, leading, before, after):
    phases = affine(3, 4, *bands(*before, 4)).float()
    given = table(layout, phases)
    merged = rope(layout, leading).merge(given, one_hot(12))
    assert merged.keys() == given.keys()
    cos, sin = cos_and_sin(layout, merged)
    assert cos.shape == sin.shape == (*after, 12, 4)
    torch.testing.assert_close(cos, phases.cos().expand_as(cos), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin, phases.sin().expand_as(sin), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mixture_stands_at_the_centroid(layout):
    start, down, right = bands(6)
    weights = torch.softmax(3 * torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)), dim=-1)
    rows, columns = torch.arange(3).repeat_interleave(4).double(), torch.arange(4).repeat(3).double()
    centre = torch.stack((weights.double() @ rows, weights.double() @ columns), dim=-1)  # (2, 5, 2)
    expected = start + centre[..., :1] * down + centre[..., 1:] * right
    merged = rope(layout).merge(table(layout, affine(3, 4, start, down, right).float()), weights)
    cos, sin = cos_and_sin(layout, merged)
    torch.testing.assert_close(cos[:, 0].double(), expected.cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[:, 0].double(), expected.sin(), rtol=0, atol=1e-5)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))  # a rotation, not a shrunken one


def test_the_dtype_of_the_table_stays_and_weights_are_read_in_float32():
    given = table("sin|cos", affine(3, 4, *bands(4)).bfloat16())
    for weights in (one_hot(12), one_hot(12).bfloat16(), one_hot(12).double()):
        assert Rope().merge(given, weights)["rope"].dtype == torch.bfloat16


def test_gradients_reach_the_weights_and_the_table():
    phases = affine(3, 4, *bands(2, 4)).float().requires_grad_()
    scores = torch.randn(2, 5, 12, requires_grad=True)
    Rope().merge(table("sin|cos", phases), scores.softmax(dim=-1))["rope"].square()[..., :4].sum().backward()
    assert scores.grad.abs().min() > 0
    assert phases.grad.abs().min() > 0


def test_gradients_are_those_of_the_formula():
    """By finite differences, in float64 as far as the phases, which are float32, allow."""
    start, down, right = bands(4, largest=1.0)
    weights = torch.softmax(torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(2)), dim=-1)

    def turned(right: Tensor) -> Tensor:
        phases = affine(3, 4, start, down, right)
        return Rope().merge(table("sin|cos", phases), weights)["rope"].sum()

    right = right.requires_grad_()
    turned(right).backward()
    expected = affine(3, 4, start, down, right.detach())
    columns = weights.double()[0] @ torch.arange(4).repeat(3).double()  # (2,)
    centre = weights.double()[0] @ expected
    torch.testing.assert_close(
        right.grad, ((centre.cos() - centre.sin()) * columns[:, None]).sum(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_positions(layout):
    given = table(layout, affine(3, 4, *bands(2, 4)).float())
    without = rope(layout).without(given)
    assert without.keys() == given.keys()
    if layout == "sin|cos":
        assert without == {"rope": None}
        return
    cos, sin = cos_and_sin(layout, without)
    if layout == "(cos, sin)":
        assert cos.shape == sin.shape == (2, 0, 4)
    else:
        assert cos.shape == sin.shape == (2, 1, 4)
        assert cos.eq(1).all()
        assert sin.eq(0).all()


def test_no_table():
    assert Rope().table({"rope": None}) is None
    assert Rope().table({}) is None
    assert Rope(("cos", "sin"), "cos, sin").table({"cos": 1, "sin": 2}) == 1
