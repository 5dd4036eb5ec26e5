import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchmerger import PatchMerger, preset
from patchmerger.prior import GridPrior, grid_positions, tiles
from patchmerger.reducers import AveragePool


def located(num_tokens: int, dim: int = 8, **options) -> PatchMerger:
    merger = PatchMerger(dim, num_tokens, **{**preset("located", dim), "dtype": torch.float64, **options})
    generator = torch.Generator().manual_seed(0)
    for parameter in merger.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return merger


def reference(merger: PatchMerger, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Y of one image, (M, D), and its weights A, (M · H, N), by loops over the definition."""
    center, width = merger.prior.center, merger.prior.log_width.exp()
    keys = torch.nn.functional.layer_norm(x, x.shape[-1:], merger.norm.weight, merger.norm.bias, 1e-6)
    groups = x.split(x.shape[-1] // merger.num_heads, dim=-1)
    merged, mixtures = [], []
    for query in range(merger.num_tokens * merger.num_heads):
        scores = []
        for n in range(len(x)):
            rows, columns = ((positions[n] - center[query]) / width[query]).tolist()
            scores.append(merger.scale * (merger.weight[query] @ keys[n]).item() - 0.5 * (rows**2 + columns**2))
        mixtures.append(torch.tensor(scores, dtype=x.dtype).softmax(dim=0))
        merged.append(merger.gain[query] * (mixtures[-1] @ groups[query % merger.num_heads]))
    return torch.cat(merged).reshape(merger.num_tokens, -1), torch.stack(mixtures)


@pytest.mark.parametrize("layout", ["grid", "rows"])
@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_equation_against_loops_in_float64(num_heads, layout):
    merger, positions = located(4, num_heads=num_heads, prior=layout), grid_positions((3, 5)).double()
    x = torch.randn(2, 15, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    merged, weights = merger(x, positions=positions, return_weights=True)
    for number, tokens in enumerate(x):
        expected, mixtures = reference(merger, tokens, positions)
        torch.testing.assert_close(merged[number], expected)
        torch.testing.assert_close(weights[number], mixtures.unflatten(0, (4, num_heads)).mean(dim=1))
    assert (merger.gain - 1).abs().min() > 1e-3  # it counts
    torch.testing.assert_close(merger(x, positions=positions), merged)


def test_heads_of_rows_begin_side_by_side_in_their_row():
    merger = PatchMerger(8, 3, prior="rows", num_heads=2, init=torch.zeros(6, 8))
    positions = grid_positions((3, 4))
    row, column = (positions * torch.tensor([3, 4]) - 0.5).T[:, None, :, None].expand(2, 1, 12, 8)
    rows, columns = (merger(x, positions=positions)[0].detach() for x in (row, column))  # (M, D): where each is from
    torch.testing.assert_close(rows, torch.tensor([0.0, 1, 2])[:, None].expand(3, 8), atol=0.02, rtol=0)
    torch.testing.assert_close(columns, torch.tensor([[0.5] * 4 + [2.5] * 4] * 3), atol=0.02, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_heads_with_the_same_queries_are_one(masked):
    one, several = located(4), located(4, num_heads=2)
    with torch.no_grad():
        for name, parameter in several.named_parameters():
            of_one = one.get_parameter(name)
            parameter.copy_(of_one if name.startswith("norm.") else of_one.repeat_interleave(2, dim=0))
    x, positions = torch.randn(2, 15, 8, dtype=torch.float64), grid_positions((3, 5)).double()
    mask = torch.arange(15) < torch.tensor([[15], [7]]) if masked else None
    torch.testing.assert_close(
        several(x, mask, positions=positions, return_weights=True),
        one(x, mask, positions=positions, return_weights=True),
    )


@pytest.mark.parametrize("num_tokens", [1, 3, 8])
def test_rows_begin_as_the_rows_of_the_image_and_are_the_same_in_its_mirror(num_tokens):
    merger = PatchMerger(8, num_tokens, prior="rows", init=torch.zeros(num_tokens, 8))
    x = torch.randn(1, num_tokens * 6, 8, generator=torch.Generator().manual_seed(0))
    weights = merger(x, positions=grid_positions((num_tokens, 6)), return_weights=True)[1]
    maps = weights.detach()[0].unflatten(1, (num_tokens, 6))  # (M, rows, columns)
    torch.testing.assert_close(maps.flip(-1), maps)
    torch.testing.assert_close(maps.sum(dim=-1), torch.eye(num_tokens), atol=2e-3, rtol=0)
    assert maps[0, 0].min() > 0.05  # all of the row


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 7, 8, 11, 16, 49])
def test_tiles_cover_the_image(num_tokens):
    center, size = tiles(num_tokens)
    assert size.prod(dim=1).sum().item() == pytest.approx(1)
    low, high = center - size / 2, center + size / 2
    assert low.min() > -1e-6
    assert high.max() < 1 + 1e-6
    for m in range(num_tokens):  # no two overlap
        overlap = (torch.minimum(high, high[m]) - torch.maximum(low, low[m])).clamp(min=0).prod(dim=1)
        overlap[m] = 0
        assert overlap.max() < 1e-6
    ratio = size[:, 0] / size[:, 1]
    assert num_tokens <= 2 or ratio.max() <= 2 + 1e-5


def test_starts_as_a_soft_average_over_regions():
    rows, columns = 8, 8
    merger = PatchMerger(6, 4, **preset("located", 6))
    x = torch.randn(1, rows * columns, 6, generator=torch.Generator().manual_seed(2))
    _, weights = merger(x, positions=grid_positions((rows, columns)), return_weights=True)
    center, _ = tiles(4)
    centroid = weights[0] @ grid_positions((rows, columns))
    assert ((centroid > 0.5) == (center > 0.5)).all()  # each query looks at its own quarter
    # As its widths shrink it becomes the mean of one region, as AveragePool's rows of patches are means of theirs.
    strips = PatchMerger(6, 2, **preset("located", 6))
    with torch.no_grad():
        strips.weight.zero_()
        strips.prior.center.copy_(torch.tensor([[-9.5, 0.5], [10.5, 0.5]]))  # far off: nearly even within a half
        strips.prior.log_width.copy_(torch.tensor([[1.0, 1e3], [1.0, 1e3]]).log())
    _, halves = strips(x, positions=grid_positions((2, 1)).repeat_interleave(32, dim=0), return_weights=True)
    _, expected = AveragePool(2)(x, return_weights=True)
    torch.testing.assert_close(halves, expected, rtol=0, atol=1e-3)


@given(shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), scale=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)))
@settings(max_examples=25, deadline=None)
def test_only_places_relative_to_centres_and_widths_count(shift, scale):
    prior, positions = GridPrior(6, dtype=torch.float64), grid_positions((4, 4)).double()
    before = prior(positions)
    moved, stretch = torch.tensor(shift, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    with torch.no_grad():
        prior.center.mul_(stretch).add_(moved)
        prior.log_width.add_(stretch.log())
    torch.testing.assert_close(prior(positions * stretch + moved), before)


def test_mean_over_a_region_is_the_same_at_any_resolution():
    merger = located(4)
    coarse, fine = ((4, 4), (8, 8))
    x = torch.randn(1, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    blocks = x.reshape(1, 4, 1, 4, 1, 8).expand(1, 4, 2, 4, 2, 8).reshape(1, 64, 8)  # each patch as four
    small = merger(x, positions=grid_positions(coarse).double())
    large = merger(blocks, positions=grid_positions(fine).double())
    assert (small - large).abs().max() < 0.2 * x.std()  # widths of a quarter of a tile, half a patch here


def test_padding_gets_no_weight_and_images_may_have_positions_of_their_own():
    merger = located(3)
    x = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    positions = torch.stack(
        (grid_positions((2, 3)), torch.cat((grid_positions((2, 2)), torch.full((2, 2), torch.nan))))
    )
    positions = positions.nan_to_num().double()
    merged, weights = merger(x, mask, positions=positions, return_weights=True)
    assert weights[1, :, 4:].abs().max() == 0
    alone = merger(x[1:, :4], positions=grid_positions((2, 2)).double())
    torch.testing.assert_close(merged[1:], alone)


def test_gradients_reach_centres_and_widths():
    merger, positions = located(3), grid_positions((3, 4)).double()
    x = torch.randn(1, 12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def merged(center: Tensor, log_width: Tensor) -> Tensor:
        given = {"prior.center": center, "prior.log_width": log_width}
        return torch.func.functional_call(merger, given, (x,), {"positions": positions})

    inputs = (merger.prior.center.detach().requires_grad_(), merger.prior.log_width.detach().requires_grad_())
    assert torch.autograd.gradcheck(merged, inputs)


def test_low_precision_computes_places_in_float32():
    prior = GridPrior(8, dtype=torch.bfloat16)
    assert prior(grid_positions((37, 37))).dtype == torch.float32
    assert math.isfinite(prior(grid_positions((37, 37))).sum().item())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"prior \('gird'\).*'grid'"):
        PatchMerger(8, prior="gird")
    merger = located(4)
    x = torch.zeros(2, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"positions must be given.*prior='grid'"):
        merger(x)
    with pytest.raises(ValueError, match=r"positions must be \(N, 2\).*\(5, 2\)"):
        merger(x, positions=torch.zeros(5, 2))


def test_the_paper_stays_the_default():
    merger = PatchMerger(8, 4)
    assert merger.prior is None
    assert not merger.needs
    assert set(merger.state_dict()) == {"weight", "norm.weight", "norm.bias"}
    assert located(4).no_weight_decay() == {"weight", "gain", "prior.center", "prior.log_width"}
