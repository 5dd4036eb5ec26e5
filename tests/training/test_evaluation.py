import pytest
import transformers

from patchmerger.hub import save
from patchmerger.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_of_transformers_is_refused(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    folder = save(transformers.ViTForImageClassification(config).eval(), tmp_path / "vit")
    with pytest.raises(ValueError, match=r"vit\) is of transformers: only models of timm and torchvision"):
        evaluate(folder)
