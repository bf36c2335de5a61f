"""lm-evaluation-harness's own tasks over the handmade data sets. Needs lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval

from tests.helpers.evaluation_models import DATA

#: Our name of each task with lm-eval's file and split.
FILES = {
    "lambada_openai": ("lambada/lambada_openai.yaml", "test", "lambada.jsonl"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", "hellaswag.jsonl"),
    "piqa": ("piqa/piqa.yaml", "validation", "piqa.jsonl"),
    "winogrande": ("winogrande/default.yaml", "validation", "winogrande.jsonl"),
    "wikitext": ("wikitext/wikitext.yaml", "test", "wikitext.jsonl"),
}


def handmade_tasks(directory: Path) -> tuple[Any, dict[str, str]]:
    """lm-eval's task manager with a task for each handmade set -> (manager, its task names by ours)."""
    from lm_eval.tasks import TaskManager

    tasks = Path(lm_eval.__file__).parent / "tasks"
    names = {}
    for name, (file, split, data) in FILES.items():
        path = directory / data
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(name)), encoding="utf-8")
        names[name] = f"handmade_{name}"
        lines = {
            "include": str(tasks / file),
            "task": names[name],
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path)}},
            "training_split": None,
            "validation_split": split if split == "validation" else None,
            "test_split": split if split == "test" else None,
        }
        (directory / f"{names[name]}.yaml").write_text(json.dumps(lines), encoding="utf-8")  # JSON is YAML too
    return TaskManager(include_path=str(directory), include_defaults=False), names


def rows_of(name: str) -> list[dict[str, Any]]:
    """The handmade rows as lm-eval's data sets have them: with PIQA's labels, and one type in each column."""
    rows = [json.loads(line) for line in (DATA / FILES[name][2]).read_text(encoding="utf-8").splitlines()]
    if name == "piqa":
        labels = (DATA / "piqa-labels.lst").read_text().split()
        rows = [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]
    if name == "hellaswag":
        rows = [{**row, "label": str(row["label"])} for row in rows]
    return rows
