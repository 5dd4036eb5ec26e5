"""One step of transformers' Trainer for every classifier that takes a merger."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="an optional dependency")
pytest.importorskip("accelerate", reason="Trainer needs it")

from hosts.tiny import FAMILIES, insert_into, make_inputs, make_model  # noqa: E402
from patchmerger.insertion.inserted import mergers  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# Its output has no loss, as transformers made it for inference: one of the user's own trains it.
WITHOUT_LOSS = {"DeiTForImageClassificationWithTeacher"}
# Images, padded ones, spectrograms, videos, none with a loss: the others are trained as one of these.
KINDS = {
    "ViTForImageClassification", "Siglip2ForImageClassification", "ASTForAudioClassification",
    "VideoMAEForVideoClassification", *WITHOUT_LOSS,
}  # fmt: skip
CLASSIFIERS = [
    pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in FAMILIES if "Classification" in name
]


def trainer(name, model, folder, **options):
    inputs = make_inputs(name)
    examples = [{key: value[i] for key, value in inputs.items()} | {"labels": i} for i in range(2)]
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False, learning_rate=1e-2, label_names=["labels"],
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=examples, **options)


def own_loss(outputs, labels, num_items_in_batch=None):
    return sum(torch.nn.functional.cross_entropy(outputs[key], labels) for key in ("cls_logits", "distillation_logits"))


@pytest.mark.filterwarnings("ignore")  # of Trainer and what it imports
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_step_of_trainer(name, tmp_path):
    model = insert_into(name, make_model(name), 3)
    before = mergers(model)[0].module.weight.detach().clone()
    options = {"compute_loss_func": own_loss} if name in WITHOUT_LOSS else {}
    result = trainer(name, model, tmp_path, **options).train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert not torch.equal(mergers(model)[0].module.weight, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITHOUT_LOSS)
def test_a_model_without_a_loss_is_refused_as_the_plain_one(name, tmp_path):
    for model in (make_model(name), insert_into(name, make_model(name), 3)):
        with pytest.raises(ValueError, match="did not return a loss"):
            trainer(name, model, tmp_path).train()


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_arguments_of_the_loss_and_of_outputs_pass_through(name):
    model, inputs = insert_into(name, make_model(name), 3), make_inputs(name)
    labels = torch.tensor([0, 1])
    expected = model(**inputs, labels=labels)
    given = model(
        **inputs, labels=labels, num_items_in_batch=torch.tensor(2), output_hidden_states=True, return_dict=True
    )
    assert torch.equal(given.logits, expected.logits)
    assert len(given.hidden_states) == 5
