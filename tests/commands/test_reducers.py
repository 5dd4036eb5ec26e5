"""Every command takes a model with another method in it, of each kind of host; or refuses it by name."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import patchmerger
from conftest import make_timm, make_vit
from hosts.tiny import make_model
from patchmerger.cli import main
from patchmerger.insertion.inserted import mergers

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
_ROTARY = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


def _folder(host: str, folder: Path) -> Path:
    """A plain model with ten classes, as its own library or this one saves it."""
    if host == "transformers DINOv2":
        make_model("Dinov2ForImageClassification", num_labels=10, image_size=32).save_pretrained(folder)
        return folder
    if host == "timm DINOv3":
        return patchmerger.save(make_timm("vit_small_patch16_dinov3", **_ROTARY), folder)
    return patchmerger.save(make_vit(num_classes=10), folder)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["timm", "transformers DINOv2", "timm DINOv3"])
def test_every_command_takes_tome(host, tmp_path, capsys):
    plain, run, picture = _folder(host, tmp_path / "plain"), tmp_path / "run", tmp_path / "picture.png"
    Image.new("RGB", (60, 40), "brown").save(picture)
    preprocessing = "--preprocessing.mean [0.5,0.5,0.5] --preprocessing.std [0.5,0.5,0.5]"

    def done(line: str) -> str:
        assert main(line.split()) == 0, line
        printed: Any = capsys.readouterr()
        return " ".join(printed.out.split())  # wherever lines were broken

    assert "merger" in done(f"cost {plain} --merge.reducer tome --merge.num_tokens 4")
    assert "--reducer tome" in done(f"plan {plain} --speedup 1.2 --reducer tome")
    assert "ToMe to 4 tokens inside block 3" in done(
        f"accelerate --model {plain} --reducer tome --after 2 --num_tokens 4 --epochs 0.1 --rounds 1 --max_drop 100 "
        f"{preprocessing} --recovery.batch_size 64 --recovery.accelerator cpu --out {run}"
    )
    (merger,) = mergers(patchmerger.load(run / "model"))
    assert (type(merger.module).__name__, merger.after, merger.num_tokens) == ("ToMe", 3, 4)
    done(f"show {run} {picture} --out {tmp_path / 'maps'}")
    assert "picture.png" in done(f"predict {run} {picture} --top 1 {preprocessing}")
    done(f"test {run} --accelerator cpu --progress false {preprocessing}")
    done(f"fewshot {run} --shots [1] --draws 1 --progress false {preprocessing}")
    done(f"patterns {run} {plain} --images 16 --progress false {preprocessing}")
    if host == "timm DINOv3":  # slow ones, once each: others are exported and measured in their own tests
        done(f"export {run} --format torch --out {tmp_path / 'x.pt2'}")
        assert "picture.png" in done(f"predict {tmp_path / 'x.pt2'} {picture} --top 1 {preprocessing}")
    if host == "transformers DINOv2":
        assert "4 tokens" in done(f"bench {run} --batch_size 1 --rounds 1 --precision float32 --mode inference")
    done(f"report {run} {tmp_path / 'maps'} --out {tmp_path / 'report.html'}")
