"""The commands that measure a model: classify, demo and raft."""

from __future__ import annotations

import csv
import io
import json

import pytest

import refgpt
from refgpt import cli
from refgpt._common.progress import counted
from refgpt.cli import loading
from refgpt.evaluation import DEMOS
from tests.helpers.raft_files import write_task
from tests.helpers.terminal import shown_on_terminal

TABLE = 'id,text,mood\n1,"Merry, he was.",glad\n2,She wept.,sad\n3,"A ""fine"" day\nat last",glad\n'


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def no_weights(monkeypatch):
    for name in ("load", "start"):
        monkeypatch.setattr(loading, name, lambda *_, **__: pytest.fail("the weights were loaded first"))


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_classify_adds_columns_to_the_table(run, table, backend):
    got = run("classify", table, "--labels", "glad, sad", "--backend", backend)
    assert (got.code, got.err) == (0, "")
    read, given = (list(csv.DictReader(io.StringIO(text))) for text in (got.out, TABLE))
    model = refgpt.load(backend=backend)
    for row, before in zip(read, given, strict=True):
        want = model.classify(before["text"], ["glad", "sad"])
        assert list(row.items())[:3] == list(before.items())
        assert row["predicted"] == want.label
        assert float(row["p(glad)"]) == pytest.approx(want.probabilities["glad"], rel=1e-5)
        assert float(row["p(sad)"]) == pytest.approx(want.probabilities["sad"], rel=1e-5)


def test_every_option_reaches_the_classifier(run, table, tmp_path):
    rows = list(csv.DictReader(io.StringIO(TABLE)))
    examples = [(row["text"], row["mood"]) for row in rows]
    model = refgpt.load()
    wanted = [model.classify(row["text"], ["sad", "glad"], "Say.\n\nT: {text}\nM:", examples, "pmi") for row in rows]
    other = {"sad": "glad", "glad": "sad"}
    judged, out = tmp_path / "judged.csv", tmp_path / "out.jsonl"
    for n_right in (3, 1, 0):
        for i, (row, want) in enumerate(zip(rows, wanted, strict=True)):
            row["mood"] = want.label if i < n_right else other[want.label]
        with judged.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        options = ["--labels", "sad,glad", "--label-column", "mood", "--examples", table, "--normalise", "pmi"]
        got = run("classify", judged, *options, "--template", "Say.\\n\\nT: {text}\\nM:", "-o", out)
        assert (got.code, got.err) == (0, "")
        for line, row, want in zip(out.read_text().splitlines(), rows, wanted, strict=True):
            found = {"predicted": want.label, "probabilities": want.probabilities, "scores": want.scores}
            assert json.loads(line) == row | found
        accuracy, macro_f1 = got.out.splitlines()
        assert accuracy.startswith(f"accuracy  {n_right / 3:.3f} [") and macro_f1.startswith("macro-F1  ")


def test_what_was_written_can_be_classified_again_but_for_its_columns(run, table, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    assert run("classify", table, "--labels", "glad,sad", "-o", first).code == 0
    got = run("classify", first, "--labels", "glad,sad", "-o", second)
    assert got.code == 1 and "first.csv: has a column with the name of a result column; got predicted" in got.err
    first.write_text(first.read_text().replace("predicted,p(glad),p(sad)", "a,b,c"))
    assert run("classify", first, "--labels", "glad,sad", "-o", second).code == 0
    one, two = (list(csv.reader(io.StringIO(path.read_text()))) for path in (first, second))
    assert [row[:6] for row in two] == one and [row[6:] for row in two[1:]] == [row[3:] for row in one[1:]]


def test_how_many_are_right_goes_beside_the_table(run, table):
    got = run("classify", table, "--labels", "glad,sad", "--label-column", "mood")
    assert got.out.count("\n") == TABLE.count("\n") and "accuracy" not in got.out
    assert got.err.startswith("accuracy  ") and "\nmacro-F1  " in got.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--labels", "glad"], "--labels: leave no choice"),
        (["--labels", "glad,,sad"], "--labels: cannot be used; got ''"),
        (["--labels", "glad,sad", "--text-column", "words"], "table.csv: there is no such column; got 'words'"),
        (
            ["--labels", "glad,grave", "--label-column", "mood"],
            "table.csv, line 3: has a label that is not among the labels",
        ),
        (["--labels", "glad,sad", "--template", "{txt}"], "--template: has an unknown field {txt}"),
        (["--labels", "glad,sad", "--examples", "x.csv"], "--examples: needs the column of labels; name it"),
        (
            ["--labels", "glad,sad", "-o", "out.txt"],
            "--output: cannot be written; got out.txt; wanted a name in .csv or",
        ),
        (["--labels", "glad,sad", "-o", "/nowhere/out.csv"], "/nowhere/out.csv: cannot be written (No such file"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(run, table, no_weights, arguments, said):
    got = run("classify", table, *arguments)
    assert (got.code, got.out) == (1, "") and got.err.startswith("refgpt: error: ") and said in got.err
    assert got.err.count("\n") == 1


def test_the_table_is_not_written_over(run, table, no_weights):
    got = run("classify", table, "--labels", "glad,sad", "-o", table.parent / "." / "table.csv")
    assert got.code == 1 and "--output: is also an input of this run" in got.err and table.read_text() == TABLE


def test_a_text_that_is_too_long_is_named_before_any_is_computed(run, table, tmp_path):
    table.write_text(TABLE + "4," + "long " * 600 + ",sad\n")
    got = run("classify", table, "--labels", "glad,sad")
    assert got.code == 1 and "table.csv, line 6, ids: the prompt is longer than the model's context" in got.err
    assert got.out == ""


def test_labels_with_commas(run, table):
    got = run("classify", table, "--labels", '"glad, or so", sad')
    assert got.out.splitlines()[0] == 'id,text,mood,predicted,"p(glad, or so)",p(sad)'


def test_a_bar_counts_where_somebody_watches(monkeypatch, table, tmp_path):
    def count(shown):
        with counted(shown and loading.watched(), 2, "row", "classifying", leave=False) as one_more:
            one_more()
            one_more()

    assert shown_on_terminal(monkeypatch, lambda: count(True)).count("classifying:   0%") == 1
    assert shown_on_terminal(monkeypatch, lambda: count(False)) == ""
    classify = ["classify", str(table), "--labels", "glad,sad", "-o", str(tmp_path / "out.csv")]
    assert "classifying:   0%" in shown_on_terminal(monkeypatch, lambda: cli.main(classify))


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_prints_its_prompt_and_the_answer(run, name):
    got = run("demo", name)
    prompt = DEMOS[name].prompt()
    want = refgpt.load().generate(prompt, max_new_tokens=10, temperature=0.1, top_k=40, seed=42, stop="\n").text
    assert (got.code, got.out, got.err) == (0, f"{prompt}{want}\n", "")


def test_a_demo_of_a_text_of_ones_own(run):
    got = run("demo", "qa", "Who was it?", "-n", 3, "--backend", "numpy")
    prompt = DEMOS["qa"].prompt("Who was it?")
    want = refgpt.load().generate(prompt, max_new_tokens=3, temperature=0.1, top_k=40, seed=42, stop="\n").text
    assert got.out == f"{prompt}{want}\n"
    assert run("demo", "qa", "-n", 0).err == (
        "refgpt: error: --max-new-tokens: cannot be used; got 0; wanted a whole number from 1\n"
    )


@pytest.fixture
def raft(tmp_path):
    write_task(tmp_path / "raft", "overruling", ["yes", "no"] * 5)
    write_task(tmp_path / "raft", "tweet_eval_hate", ["no", "yes", "yes"] * 4)
    return tmp_path / "raft"


@pytest.mark.parametrize("method", ["generate", "likelihood"])
def test_raft_prints_a_line_a_task_and_the_mean(run, raft, tmp_path, method):
    out = tmp_path / "answers.jsonl"
    got = run("raft", raft, "--method", method, "--trials", 2, "--rows", 3, "--shots", 1, "-o", out)
    assert got.code == 0 and "so not in any mean: ade_corpus_v2" in got.err
    header, one, two, mean = got.out.splitlines()
    assert header.split("  ") and header.startswith("task ") and "quasi-exact match" in header
    assert one.startswith("overruling ") and two.startswith("tweet_eval_hate ") and mean.startswith("mean of 2 ")
    about, *answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert about["run"]["measures"][0]["task"] == "overruling"
    assert [(a["task"], a["trial"], a["row"]) for a in answers] == [
        (task, trial, row) for task in ("overruling", "tweet_eval_hate") for trial in (0, 1) for row in range(3)
    ]
    right = {
        task: sum(a["answer"] == a["label"] for a in answers if a["task"] == task) / 6
        for task in ("overruling", "tweet_eval_hate")
    }
    assert one.split()[2] == f"{right['overruling']:.3f}" and two.split()[2] == f"{right['tweet_eval_hate']:.3f}"
    assert mean.split()[3] == f"{sum(right.values()) / 2:.3f}"
    assert method == "generate" or {a["answer"] for a in answers} <= {"yes", "no"}


def test_raft_says_what_did_not_fit(run, raft):
    got = run("raft", raft, "--tasks", "overruling", "--shots", 2, "--trials", 1, "--rows", 1)
    assert got.code == 0 and "lost examples" not in got.err
    (raft / "overruling" / "train.csv").write_text(
        "Sentence,Label\n" + "".join(f"{'word ' * 150}{i},{'yes' if i % 2 else 'no'}\n" for i in range(10))
    )
    got = run("raft", raft, "--tasks", "overruling", "--shots", 2, "--trials", 1, "--rows", 2)
    assert "overruling: 2 of 2 prompts lost examples, or their end, to fit into the context" in got.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--tasks", "overruling,banking_77"], "tasks are missing; got no banking_77"),
        (["--tasks", "nothing"], "there is no such task; got nothing"),
        (["--trials", "0"], "--trials: cannot be used; got 0"),
        (["-o", "answers.csv"], "--output: cannot be written; got answers.csv; wanted a name in .jsonl"),
    ],
)
def test_mistakes_about_raft_are_found_before_the_weights_are_read(run, raft, no_weights, arguments, said):
    got = run("raft", raft, *arguments)
    assert (got.code, got.out) == (1, "") and said in got.err
