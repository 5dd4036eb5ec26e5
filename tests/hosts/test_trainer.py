"""One step of transformers' Trainer for every classifier that takes a merger."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="an optional dependency")
pytest.importorskip("accelerate", reason="Trainer needs it")

from hosts.tiny import FAMILIES, insert_into, make_inputs, make_model  # noqa: E402
from patchmerger.inserted import mergers  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIERS = [name for name in FAMILIES if "Classification" in name]
# Its output has no loss: it is made for inference.
WITHOUT_LOSS = {"DeiTForImageClassificationWithTeacher"}


@pytest.mark.filterwarnings("ignore")  # of Trainer and what it imports
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in WITHOUT_LOSS])
def test_a_step_of_trainer(name, tmp_path):
    model, inputs = insert_into(name, make_model(name), 3), make_inputs(name)
    examples = [{key: value[i] for key, value in inputs.items()} | {"labels": i} for i in range(2)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False, learning_rate=1e-2,
    )  # fmt: skip
    before = mergers(model)[0].module.weight.detach().clone()
    result = transformers.Trainer(model, arguments, train_dataset=examples).train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert not torch.equal(mergers(model)[0].module.weight, before)


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
