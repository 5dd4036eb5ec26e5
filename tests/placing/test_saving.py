"""Models with placed tokens on disk, counted, and measured against the plain one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_images, make_timm, make_vit
from patchmerger import cost, insert, load, mergers, place, preset, save, unplace
from patchmerger.costs.named_cost import cost_of
from patchmerger.hub import describe
from patchmerger.maps.showing import read_shown, show
from patchmerger.models.settings import ModelSettings
from patchmerger.placing import PlacingSettings, placing_of, positions_in
from patchmerger.reports.pictures.map_pictures import draw_image
from patchmerger.speed.candidates import build_candidates
from patchmerger.training.finetuning import start_from

pytestmark = pytest.mark.usefixtures("one_thread")

PLACED = {
    "sobol": lambda: place(make_vit(), 9, seed=3),
    "edges": lambda: place(make_vit(), 9, "edges", window=(6, 10), uniform_share=0.5),
    "learned": lambda: insert(place(make_vit(), 9, "learned"), 4, **preset("located", 32)),
    "given once": lambda: insert(place(make_vit(), positions=[[0.2, 0.3], [0.7, 0.6]]), 2),
    "rotary": lambda: place(
        make_timm("vit_small_patch16_rope_224", img_size=48, patch_size=8, embed_dim=16, depth=2, num_heads=2), 9
    ),
}


@pytest.mark.parametrize("name", PLACED)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    model = PLACED[name]()
    if name == "learned":
        with torch.no_grad():
            model.patch_embed.placement.offset.normal_(generator=torch.Generator().manual_seed(0))
    images = make_images(2, model.patch_embed.img_size[0])
    again = load(save(model, tmp_path / "model"))
    assert torch.equal(again(images), model(images))
    assert torch.equal(positions_in(again, images), positions_in(model, images))
    assert placing_of(again) == placing_of(model) == describe(tmp_path / "model").placing
    assert len(mergers(again)) == len(mergers(model))
    assert torch.equal(unplace(again)(images), unplace(model)(images))


def test_positions_of_each_batch_cannot_be_saved_as_those_of_all(tmp_path):
    with pytest.raises(ValueError, match="positions must be given"):
        save(place(make_vit(), 9, "given"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_config_that_is_not_understood_is_named(tmp_path):
    save(PLACED["sobol"](), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["patchmerger"]["placing"]["sampler"] = "halton"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not understood: .*placing.sampler"):
        load(tmp_path / "model")


def test_a_plain_config_has_no_placing(tmp_path):
    save(make_vit(), tmp_path / "model")
    assert describe(tmp_path / "model").placing is None


def test_cost_and_bench_hold_it_against_the_plain_model(tmp_path):
    model, plain = insert(place(make_vit(), 8), 4), cost(make_vit())
    found = cost(model)
    assert (found.tokens, found.tokens_out, found.plain_flops) == (9, 5, plain.flops)
    assert found.speedup > 1.5
    placed = cost(place(make_vit(), 8))
    assert plain.flops > placed.flops > found.flops
    assert placed.plain_flops == plain.flops
    path = save(place(make_vit(), 8), tmp_path / "model")
    assert cost_of(path).flops == placed.flops
    assert cost_of(path, None).flops == plain.flops
    candidates = build_candidates(str(path), seed=0)
    assert (candidates.placed, candidates.num_tokens) == (8, ())
    assert cost(candidates.models["plain"]).flops == plain.flops
    assert cost(candidates.models["merged"]).flops == placed.flops


def test_merge_maps_are_shown_where_tokens_were_placed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    model = insert(place(make_vit(), 9), 4)
    results = show(model, [tmp_path / "image.png"], out=tmp_path / "maps", device="cpu", progress=False)
    places = results["images"][0]["places"]
    assert np.allclose(places, positions_in(model, make_images(1))[0])
    _, tensors = read_shown(tmp_path / "maps")
    draw_image(results, tensors, 0, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 10_000


def test_a_placed_model_is_fine_tuned_as_it_is(tmp_path):
    path = save(insert(place(make_vit(), 9, "learned"), 4), tmp_path / "model")
    for settings, grid in ((ModelSettings(), (4, 4)), (ModelSettings(args={"img_size": 48}), (6, 6))):
        model = start_from(path, settings, "auto", class_names=tuple("abcd")).model
        assert placing_of(model) == PlacingSettings(9, "learned")
        assert model.patch_embed.grid_size == grid
        assert len(mergers(model)) == 1
        model(make_images(2, 8 * grid[0]))
