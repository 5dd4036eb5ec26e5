"""How transformers runs a merged model: recorded outputs, losses, checkpointing, kinds of attention, compilers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytest.importorskip("transformers", reason="an optional dependency")

from hosts.tiny import (
    FAMILIES,
    TINY,
    answers,
    assert_equal,
    gradients,
    insert_into,
    make_inputs,
    make_model,
    padded_inputs,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIERS = [name for name in FAMILIES if "Classification" in name and "Teacher" not in name]


def make_eager(name: str) -> Any:
    # Data2Vec chooses when it is made, the others when they are called.
    model = make_model(name, **({"attn_implementation": "eager"} if name.startswith("Data2Vec") else {}))
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_attentions(name):
    prefix, patches = TINY[name].prefix, TINY[name].patches
    model, plain = make_eager(name), make_eager(name)
    recorded = {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**make_inputs(name), **recorded)
    if outputs.get("vision_model_output", outputs).hidden_states is None:
        pytest.skip("this version records nothing for a model inside another")
    outputs = insert_into(name, model, 3)(**make_inputs(name), **recorded)
    outputs = outputs.get("vision_model_output", outputs)
    long, short = prefix + patches, prefix + 3
    assert [x.shape[1] for x in outputs.hidden_states] == [long, long, short, short, short]
    assert [tuple(x.shape[2:]) for x in outputs.attentions] == [(long, long)] * 2 + [(short, short)] * 2
    assert_equal(run(remove(model), make_inputs(name)), run(plain, make_inputs(name)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_labels_and_loss(name):
    model = insert_into(name, make_model(name), 3)
    labels = torch.tensor([1, 4])
    outputs = model(**make_inputs(name), labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    assert isinstance(model(**make_inputs(name), return_dict=False), tuple)


CHECKPOINTED = ("ViTForImageClassification", "DINOv3ViTModel", "BeitModel with bias", "Siglip2ForImageClassification")
CHECKPOINTED += ("Data2VecVisionModel with bias", "CLIPModel")


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_with_two_forwards_before_the_backward(name):
    model = insert_into(name, make_model(name), (8, 3), after=(1, 3)).train()
    calls = []
    mergers(model)[0].module.register_forward_pre_hook(lambda *given: calls.append(given))
    torch.manual_seed(0)  # DINOv3 rescales its positions at random
    expected = gradients(model, make_inputs(name), times=2)
    assert len(calls) == 2
    checkpoint(model, use_reentrant=False)
    torch.manual_seed(0)
    given = gradients(model, make_inputs(name), times=2)
    assert len(calls) == 2 + 4  # forward and again in the backward pass
    assert given.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(given[key], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def checkpoint(model: Any, *, use_reentrant: bool) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def test_reentrant_checkpointing_works_or_is_refused():
    name = "ViTForImageClassification"
    model = insert(make_model(name), 3).train()
    expected = gradients(model, make_inputs(name))
    checkpoint(model, use_reentrant=True)
    for key, gradient in gradients(model, make_inputs(name)).items():
        torch.testing.assert_close(gradient, expected[key])
    model = insert(make_model("DINOv3ViTModel"), 3).train()
    checkpoint(model, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"merged tokens came without their positions.*use_reentrant=False"):
        gradients(model, make_inputs("DINOv3ViTModel"))


@pytest.mark.parametrize("name", [*CHECKPOINTED, "Aimv2VisionModel", "Dinov2Model"])
def test_attention_implementations_agree(name):
    model = insert_into(name, make_model(name), 3)
    inputs = padded_inputs() if name.startswith("Siglip2") else make_inputs(name)
    found = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(run(model, inputs))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DINOv3ViTModel"])
@torch.no_grad()
def test_compile(name):
    torch.compiler.reset()
    model, inputs = insert_into(name, make_model(name), 3), make_inputs(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for key, value in answers(compiled(**inputs)).items():
        torch.testing.assert_close(value, answers(model(**inputs))[key])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("ViTForImageClassification", "eager"),
        ("DINOv3ViTModel", "sdpa"),
        ("BeitModel with bias", "sdpa"),
    ],
)
@torch.no_grad()
def test_export(name, implementation):
    model, inputs = make_model(name), make_inputs(name)
    model.set_attn_implementation(implementation)
    insert_into(name, model, (7, 3), after=(1, 3))
    program = torch.export.export(model, (), inputs)
    for key, value in answers(program.module()(**inputs)).items():
        torch.testing.assert_close(value, answers(model(**inputs))[key])
    mask = torch.ones(2, TINY[name].prefix + TINY[name].patches, dtype=torch.bool)
    with pytest.raises(ValueError, match="attention_mask was given to a merged model"):
        torch.export.export(model, (), inputs | {"attention_mask": mask})
