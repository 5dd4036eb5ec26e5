"""The page of the evidence, made from the committed results: ``python -m tools.evidence.page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from patchmerger.reports import compare, sweep, transfer
from patchmerger.reports.parts.numbers import counted, model_text
from patchmerger.runs.files import read_json, write_text
from tools.evidence import budgets
from tools.evidence.findings import KINDS, Results, findings, kind_of, remarks, verdict
from tools.evidence.studies import EXPECTED, STUDIES, Study
from tools.markdown import given_paths, shown_table

RESULTS, PAGE = Path("results"), Path("docs/evidence.md")

_INTRO = """\
# The evidence

<!-- Made by `make evidence-page` from results/*.json; what is written here by hand is lost. -->

The paper's claim: a Vision Transformer with a PatchMerger halfway, M = 8, is as accurate as the plain one, upstream
and downstream, at about half the compute. This page says what of it has been measured with this library, at which
scale, and what has not. Every number is from the file that is named beside it, made again by the command below it.

The claim counts as **shown** by a study where the whole 95% interval of *merged − plain*, over seeds, is above
−{margin} points (few-shot −{few_shot}), a training step takes at most {time} of the time, and merged is above both
controls: average pooling in the merger's place, and a shallower plain model of its FLOPs. Anything else is
**not shown**. An interval that holds 0 shows no difference, and does not show that there is none.

| study | scale | result |
|---|---|---|
{rows}
"""


def render(results: Mapping[str, Results]) -> str:
    """The page, in Markdown.

    Args:
        results: The content of the result files that are there, by the name of the file.
    """
    rows = []
    sections = []
    for study in STUDIES:
        found = results.get(study.file)
        anchor = "".join(c for c in study.title.lower().replace(" ", "-") if c.isalnum() or c == "-")
        scale, result = ("–", "ready, **not run**") if found is None else (_scale(found), verdict(found))
        rows.append(f"| [{study.title}](#{anchor}) | {scale} | {result} |")
        sections.append(_section(study, found))
    intro = _INTRO.format(
        margin=f"{100 * EXPECTED.margin:g}",
        few_shot=f"{100 * EXPECTED.few_shot_margin:g}",
        time=f"{EXPECTED.training_time:g}",
        rows="\n".join(rows),
    )
    return "\n".join([intro, *sections])


def _section(study: Study, found: Results | None) -> str:
    parts = [f"## {study.title}\n", f"{study.question}\n"]
    if found is None:
        parts.append("**Ready, not run.** Nothing is known of it yet.\n")
    else:
        kind = KINDS.get(kind_of(found))
        own = {"compare": compare.table, "sweep": sweep.table, "transfer": transfer.table}
        table = shown_table(own[kind_of(found)](found)) if kind is None else kind.table(found)
        parts += [f"{_conditions(found)}\n", f"{table}\n"]
        parts += [f"- {finding}" for finding in findings(found)]
        parts += [f"- {remark}" for remark in (*remarks(found), study.caveat) if remark]
        parts.append(f"\nSource: `results/{study.file}.json`, by\n")
    return "\n".join([*parts, f"```console\n$ {_command(study, found)}\n```\n"])


def _command(study: Study, found: Results | None) -> str:
    """The command that was run, without what only changes what is shown; before that the one to run."""
    command = study.command if found is None else str(found["command"])
    return command.replace(" --traceback", "").replace(" --progress false", "")


def _scale(found: Results) -> str:
    if (kind := KINDS.get(kind_of(found))) is not None:
        return kind.scale(found, _device(found))
    settings = found["settings"]
    images = settings["data"]["source"].rsplit("/", 1)[-1]
    if kind_of(found) == "transfer":
        images += f" → {settings['downstream']['source'].rsplit('/', 1)[-1]}"
    trained = f"{counted(settings['training']['epochs'], 'epoch')}, {counted(settings['seeds'], 'seed')}"
    return f"{images}, {trained}, {_device(found)}"


def _device(found: Results) -> str:
    return "CPU" if found["environment"]["device"] == "cpu" else str(found["environment"]["device_name"])


def _conditions(found: Results) -> str:
    if (kind := KINDS.get(kind_of(found))) is not None:
        return kind.conditions(found)
    settings, where = found["settings"], found["environment"]
    data = found["data"]
    if kind_of(found) == "transfer":
        described = "; then ".join(data.values())
        tuning = settings["finetuning"]["training"]["epochs"]
        epochs = f"{counted(settings['training']['epochs'], 'epoch')} upstream, {tuning} of fine-tuning"
    else:
        described = data if isinstance(data, str) else data["description"]
        epochs = counted(settings["training"]["epochs"], "epoch")
    return (
        f"{described}. Model: {model_text(settings['model'], found.get('init'))}. "
        f"{epochs}, {counted(settings['seeds'], 'seed')}; on "
        f"{where['device_name']}, torch {where['torch']}, timm {where['timm']}."
    )


def read_results(folder: Path) -> dict[str, Results]:
    """The result files of the studies that are in ``folder``, by name."""
    found = {study.file: [read_json(path) for path in sorted(folder.glob(f"{study.file}.json"))] for study in STUDIES}
    return {name: budgets.together(read) if "*" in name else read[0] for name, read in found.items() if read}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page; the folder of the results and the page may be given."""
    results, page = given_paths(arguments, RESULTS, PAGE)
    write_text(page, render(read_results(results)))


if __name__ == "__main__":
    main()
