"""The training room, on Lightning: ``fitting`` is one run from images to a saved model, ``task`` what a step does.

``settings`` says how, ``finetuning`` where a run starts that does not start from noise, ``evaluation`` how good it is.
"""
