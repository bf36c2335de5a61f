"""Requests of one file with different adapters, in the library and on the command line."""

from __future__ import annotations

import json

import pytest

import refgpt
from refgpt import DataError, GenerationParams, Scheduler
from refgpt.batches import run_batch
from tests.helpers.adapters import written

PARAMS = GenerationParams(max_new_tokens=6, seed=1)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: written(None, folder / name, "wq wv w_in", seed) for seed, name in enumerate(("oz", "law"))}


@pytest.fixture(scope="module")
def models(paths):
    return {None: refgpt.load(), **{name: refgpt.load(adapter=path) for name, path in paths.items()}}


def openai(custom_id, url="/v1/completions", **body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def requests(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_names_its_adapter(paths, models, tmp_path):
    given = {"prompt": PROMPT, "max_tokens": 6, "seed": 1}
    file = requests(
        tmp_path / "in.jsonl",
        {"prompt": PROMPT, "adapter": "oz"},
        {"prompt": PROMPT},
        {"prompt": PROMPT, "adapter": "law"},
        {"prompt": PROMPT, "adapter": "Oz"},
        openai("a", model="law", **given),
        openai("b", model="gpt-3", **given),
        openai("c", "/v1/embeddings", model="oz", input=PROMPT),
        openai("d", model="law", adapter="oz", **given),
    )
    run_batch(refgpt.load(adapters=paths), file, tmp_path / "out.jsonl", PARAMS)
    oz, base, law, unknown, *answers = records(tmp_path / "out.jsonl")
    want = {name: model.generate(PROMPT, PARAMS).text for name, model in models.items()}
    assert [oz["text"], base["text"], law["text"]] == [want["oz"], want[None], want["law"]]
    assert len({*want.values()}) == 3 and "'Oz'; wanted one of oz, law" in unknown["error"]
    bodies = [one["response"]["body"] for one in answers]
    assert [one["model"] for one in bodies] == ["law", "gpt-3", "oz", "law"]
    assert [bodies[i]["choices"][0]["text"] for i in (0, 1, 3)] == [want["law"], want[None], want["oz"]]
    assert bodies[2]["data"][0]["embedding"] == models["oz"].embed([PROMPT])[0].tolist()


def test_texts_are_classified_with_an_adapter(paths, models):
    model = refgpt.load(adapters=paths)
    found = [model.classify("A king of old", ["good", "bad"], adapter=name) for name in models]
    assert found == [one.classify("A king of old", ["good", "bad"]) for one in models.values()]
    assert len({one.scores["good"] for one in found}) == 3


def test_a_table_has_a_column_of_them(paths, models, tmp_path):
    (tmp_path / "in.csv").write_text(f"prompt,adapter\n{PROMPT},oz\n{PROMPT},\n")
    run_batch(refgpt.load(adapters=paths), tmp_path / "in.csv", tmp_path / "out.jsonl", PARAMS)
    want = [models[name].generate(PROMPT, PARAMS).text for name in ("oz", None)]
    assert [one["text"] for one in records(tmp_path / "out.jsonl")] == want


def interrupted_run(model, folder, monkeypatch):
    """A file of two requests, of which the first has a record."""
    file = requests(folder / "in.jsonl", {"prompt": PROMPT, "adapter": "oz"}, {"prompt": PROMPT, "max_new_tokens": 60})
    step, passes = Scheduler.step, []

    def interrupted(scheduler):
        passes.append(scheduler)
        if len(passes) == 20:
            raise KeyboardInterrupt
        return step(scheduler)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scheduler, "step", interrupted)
        run_batch(model, file, folder / "out.jsonl", PARAMS)
    return file


def test_an_interrupted_run_goes_on_with_the_same_adapters_only(paths, tmp_path, monkeypatch):
    file = interrupted_run(refgpt.load(adapters=paths), tmp_path, monkeypatch)
    swapped = {"oz": paths["law"], "law": paths["oz"]}
    with pytest.raises(DataError, match="got another adapters"):
        run_batch(refgpt.load(adapters=swapped), file, tmp_path / "out.jsonl", PARAMS)
    assert run_batch(refgpt.load(adapters=paths), file, tmp_path / "out.jsonl", PARAMS).n_earlier == 1


def test_an_interrupted_run_goes_on_with_the_same_masks_only(tmp_path, monkeypatch):
    oz = {"oz": written(None, tmp_path / "oz", "wq", 2, mask="prefix")}
    file = interrupted_run(refgpt.load(adapters=oz), tmp_path, monkeypatch)
    with pytest.raises(DataError, match="got another adapters"):
        run_batch(refgpt.load(adapters=oz, mask="causal"), file, tmp_path / "out.jsonl", PARAMS)
    assert run_batch(refgpt.load(adapters=oz), file, tmp_path / "out.jsonl", PARAMS).n_earlier == 1


def test_the_command_takes_several_by_name(run, paths, models, tmp_path):
    file = requests(tmp_path / "in.jsonl", {"prompt": PROMPT, "adapter": "oz"}, {"prompt": PROMPT, "adapter": "law"})
    options = ["--temp", 0, "-n", 6, "--repetition-penalty", 1]
    got = run("batch", file, *options, "--adapter", f"oz={paths['oz']}", "--adapter", f"law={paths['law']}")
    want = [models[name].generate(PROMPT, temperature=0, max_new_tokens=6).text for name in ("oz", "law")]
    assert got.code == 0 and [json.loads(line)["text"] for line in got.out.splitlines()] == want
    got = run("batch", requests(file, {"prompt": PROMPT}), *options, "--adapter", paths["law"])
    assert json.loads(got.out)["text"] == want[1]


def test_a_directory_may_have_an_equals_sign(run, paths, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").symlink_to(paths["oz"])
    want = models["oz"].generate(PROMPT, temperature=0, max_new_tokens=4).text
    for name in ("lr=1", "./lr=1", "oz=lr=1"):
        got = run("generate", PROMPT, "--temp", 0, "-n", 4, "--repetition-penalty", 1, "--adapter", name)
        assert got.code == 0 and want in got.out


@pytest.mark.parametrize(
    ("command", "given", "fault"),
    [
        ("generate", ["oz=there", "law=here"], "this command uses one adapter"),
        ("generate", ["one", "two"], "this command uses one adapter"),
        ("batch", ["oz=there", "oz=here"], "the name 'oz' is given twice"),
        ("serve", ["there", "here"], "only one can be without a name"),
    ],
)
def test_adapters_that_cannot_be_meant_are_refused(command, given, fault, capsys):
    options = [word for one in given for word in ("--adapter", one)]
    with pytest.raises(SystemExit) as ended:
        refgpt.cli.main([command, "x" if command != "serve" else "-q", *options])
    assert ended.value.code == 2 and fault in capsys.readouterr().err


def test_either_one_for_all_or_several_by_name(run, paths, tmp_path):
    file = requests(tmp_path / "in.jsonl", {"prompt": PROMPT})
    got = run("batch", file, "--adapter", paths["oz"], "--adapter", f"law={paths['law']}")
    assert got.code == 1 and "--adapter: one adapter is always applied, and others are chosen by name" in got.err
    got = run("batch", file, "--adapter", "law=nowhere")
    assert got.code == 1 and "adapter law, nowhere/adapter_config.json: there is no such file" in got.err
