"""The zero-shot tasks and perplexity against lm-eval's own requests, answers and metrics, on the handmade sets."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from refgpt._common.errors import DataError, GenerationError
from refgpt._common.record_file import RecordFile
from refgpt.evaluation import PUBLISHED, TASKS, Metric, PairedRuns, Perplexity, ZeroShot, evaluate, read_rows
from refgpt.evaluation.perplexity import ENOUGH_TEXTS
from refgpt.evaluation.reports import comparison_table, table
from refgpt.evaluation.requests import LM_EVAL
from refgpt.evaluation.rows import Rows
from tests.helpers.evaluation_models import DATA, GOLDENS, model_named

FOUND = json.loads(GOLDENS.read_text(encoding="utf-8"))["tasks"]
ZERO_SHOT = [name for name in FOUND if name != "wikitext"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_named("three layers", tmp_path_factory.mktemp("model"))


def measure_of(name):
    if name == "wikitext":
        return Perplexity(read_rows(DATA / "wikitext.jsonl"), "wikitext")
    task, _, variant = name.partition("_")
    return ZeroShot(TASKS[task], read_rows(DATA / f"{task}.jsonl"), variant=variant or None)


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_what_is_asked_is_what_lm_eval_asks(name):
    questions = measure_of(name).questions
    want = [[tuple(pair) for pair in item["requests"]] for item in FOUND[name]["items"]]
    assert [list(question.pairs) for question in questions] == want


def test_wikitext_is_joined_as_lm_eval_joins_it(model):
    measure = measure_of("wikitext")
    want = [item["requests"][0][0] for item in FOUND["wikitext"]["items"]]
    assert all("@" not in text and " ;" not in text for text in want)
    for (*requests,), text in zip(measure.requests(model.config, model.tokenizer), want, strict=True):
        ids = [token for request in requests for token in request.continuations[0]]
        assert ids == model.tokenizer.encode(text)


@pytest.mark.parametrize("name", FOUND)
def test_answers_and_metrics_are_lm_evals(model, name):
    run = evaluate(model, measure_of(name))
    for record, item in zip(run.records, FOUND[name]["items"], strict=True):
        got = record.get("loglikelihoods", [record.get("loglikelihood")])
        want = [answer[0] for answer in item["answers"]]
        if name != "wikitext":
            greedy = record.get("greedy", [record["acc"]])
            assert [bool(one) for one in greedy] == [answer[1] for answer in want]
            want = [answer[0] for answer in want]
        assert got == pytest.approx(want, abs=2e-3)
    metrics = {key: value for key, value in FOUND[name]["metrics"].items() if not key.endswith("stderr")}
    assert metrics.keys() <= run.results.keys()
    for key, value in metrics.items():
        assert run.results[key].value == pytest.approx(value, rel=1e-4), key
        assert run.results[key].low <= run.results[key].value <= run.results[key].high


def test_piqas_labels_may_lie_in_a_file_of_their_own(tmp_path):
    for name in ("piqa.jsonl", "piqa-labels.lst"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    assert [one.gold for one in measure_of("piqa").questions] == [0, 1, 0, 1, 0]
    (tmp_path / "piqa-labels.lst").write_text("1\n0\n")
    with pytest.raises(DataError, match=r"piqa-labels.lst: has another number of labels .*got 2; wanted 5"):
        read_rows(tmp_path / "piqa.jsonl")
    (tmp_path / "piqa-labels.lst").unlink()
    with pytest.raises(DataError, match=r"piqa.jsonl, line 1: lacks a column; .*wanted 'label'"):
        ZeroShot(TASKS["piqa"], read_rows(tmp_path / "piqa.jsonl"))


@pytest.mark.parametrize("suffix", ["json", "csv", "txt", "parquet"])
def test_a_data_set_is_the_same_in_each_format(tmp_path, suffix):
    rows = [json.loads(line) for line in (DATA / "hellaswag.jsonl").read_text(encoding="utf-8").splitlines()]
    path, task = tmp_path / f"set.{suffix}", "hellaswag"
    if suffix == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, rows[0])
            out.writeheader()
            out.writerows({**row, "endings": json.dumps(row["endings"])} for row in rows)
    elif suffix == "parquet":
        pa = pytest.importorskip("pyarrow", reason='needs the extra "eval"')
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist([{**row, "label": str(row["label"])} for row in rows]), path)
    else:
        task = "lambada"
        texts = [json.loads(line)["text"] for line in (DATA / "lambada.jsonl").read_text(encoding="utf-8").splitlines()]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    want = ZeroShot(TASKS[task], read_rows(DATA / f"{task}.jsonl")).questions
    assert ZeroShot(TASKS[task], read_rows(path)).questions == want


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", "\n \n", "has no rows"),
        ("a.jsonl", '{"text": "x y"}\n[1]\n', "a.jsonl, line 2: the text is JSON, but not an object"),
        ("a.json", '{"text": "x y"}', "is no JSON array"),
        ("a.json", '[{"text": "x y"} {"text": "x"}]', "after object 1: is not JSON"),
        ("a.json", '[{"text": "x y"}, {"te]', "object 2: is not JSON"),
        ("a.json", "[]", "has no rows"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.xlsx", "x", "suffix that says nothing; wanted a name in .jsonl"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        read_rows(path)
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / f"nowhere{path.suffix}")


def test_a_file_that_is_no_parquet(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not at all")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'not installed; pip install "refgpt\[eval\]", or give'):
        read_rows(path)
    monkeypatch.undo()
    pytest.importorskip("pyarrow", reason='needs the extra "eval"')
    with pytest.raises(DataError, match=r"a.parquet: is not a Parquet file that can be read"):
        read_rows(path)


@pytest.mark.parametrize(
    "task, row, said",
    [
        ("lambada", {"text": "word"}, "has a passage of one word"),
        ("lambada", {"text": 3}, "'text' is no text; got 3"),
        ("lambada", {"context": "a b"}, "lacks a column; got context; wanted 'text'"),
        (
            "hellaswag",
            {"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": "x"},
            "'endings' is no list of texts",
        ),
        ("piqa", {"goal": "", "sol1": "a", "sol2": "b", "label": 2}, "'label' cannot be used; got 2; wanted a whole"),
        ("piqa", {"goal": "", "sol1": "a", "sol2": "b", "label": True}, "'label' cannot be used; got True"),
        ("winogrande", {"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}, "sentence without a blank"),
        ("winogrande", {"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}, "'answer' cannot be used"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path, task, row, said):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"set.jsonl, line 1: .*{said}"):
        ZeroShot(TASKS[task], read_rows(path))


def test_an_item_that_does_not_fit_is_named(model, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "all is well"}\n' + json.dumps({"text": f"a {'x' * 600}"}) + "\n")
    measure = ZeroShot(TASKS["lambada"], read_rows(path))
    with pytest.raises(GenerationError, match=r"set.jsonl, line 2: the continuation is too long; got 601 tokens"):
        measure.requests(model.config, model.tokenizer)
    with pytest.raises(GenerationError, match="no tokenizer"):
        measure.requests(model.config, None)


def test_versions_of_the_data():
    rows = read_rows(DATA / "lambada.jsonl")
    assert [ZeroShot(TASKS["lambada"], rows, LM_EVAL, one).name for one in (None, "standard")] == [
        "lambada_openai",
        "lambada_standard",
    ]
    with pytest.raises(DataError, match=r"variant: .*got x; wanted openai, standard"):
        ZeroShot(TASKS["lambada"], rows, variant="x")
    with pytest.raises(DataError, match="wanted none, since hellaswag has one version"):
        ZeroShot(TASKS["hellaswag"], read_rows(DATA / "hellaswag.jsonl"), variant="openai")
    with pytest.raises(DataError, match="got x; wanted plain, wikitext"):
        Perplexity(rows, "x")


def test_the_other_version_of_the_data_is_noticed(tmp_path, caplog):
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "`` i do , \'\' she said , and took the ring"}\n' * 3)
    ZeroShot(TASKS["lambada"], read_rows(path), variant="standard")
    ZeroShot(TASKS["lambada"], read_rows(DATA / "lambada.jsonl"))
    assert not caplog.text
    ZeroShot(TASKS["lambada"], read_rows(path))
    assert "set.jsonl: the texts look like the version standard, and are measured as openai" in caplog.text


def test_a_run_that_was_cut_off_goes_on(model):
    """Nothing is asked twice, and the records are those of a run in one piece."""
    measure, file = measure_of("hellaswag"), RecordFile([])
    whole = evaluate(model, measure)
    file.records += [dict(record) for record in whole.records[:4]]
    counted = []
    rest = evaluate(model, measure, file, lambda: counted.append(1))
    assert len(counted) == 2 and rest.results == whole.results

    def timeless(records):
        return [{key: value for key, value in record.items() if key != "seconds"} for record in records]

    assert timeless(rest.records) == timeless(whole.records) == timeless(file.records)
    for damage in ({"item": 7}, {"acc": None}):
        with pytest.raises(DataError, match=r"not those of the first items|lacks a number; got None; wanted acc"):
            evaluate(model, measure, RecordFile([{**whole.records[0], **damage}]))


def test_the_paired_difference_is_narrower_than_its_parts(model):
    """Runs that differ in few items: what is hard about an item cancels."""
    stream = np.random.default_rng(0)
    right = stream.random(400) < 0.6
    other = np.where(stream.random(400) < 0.05, ~right, right)
    measure = measure_of("hellaswag")
    measure.places = [f"line {i}" for i in range(400)]
    runs = [
        type("Run", (), {"measure": measure, "records": [{"acc": int(one), "acc_norm": int(one)} for one in hits]})
        for hits in (right, other)
    ]
    for run in runs:
        run.results = measure.results(run.records)
    comparison = PairedRuns(*runs)
    change = comparison.differences["acc"]
    assert change.value == pytest.approx(other.mean() - right.mean())
    assert change.high - change.low < 0.5 * (runs[0].results["acc"].high - runs[0].results["acc"].low)
    assert comparison.changed == [(int(i), bool(other[i])) for i in np.flatnonzero(right != other)]
    lines = comparison_table(comparison, ("f16", "q4"))
    n, n_won = int((right != other).sum()), int((other & ~right).sum())
    assert lines[0].split() == ["metric", "f16", "q4", "difference"]
    assert lines[3] == f"{n} of 400 items changed: {n_won} became right, {n - n_won} wrong"
    first = comparison.changed[0]
    assert lines[4] == f"  line {first[0]}: {'now right' if first[1] else 'now wrong'}"


def test_the_table_stands_beside_what_was_published(model):
    lines = table(evaluate(model, measure_of("lambada_openai")))
    assert lines[0].startswith("metric  ") and lines[0].endswith("  GPT-J 6B  GPT-3 6.7B  GPT-Neo 2.7B")
    assert lines[1].startswith("perplexity") and lines[1].split()[-3:] == ["3.99", "4", "5.63"]
    assert lines[2].startswith("acc (%)") and lines[2].split()[-3:] == ["69.7", "70.3", "62.2"]
    assert {name for name, _ in PUBLISHED} == {
        "lambada_openai",
        "winogrande",
        "hellaswag",
        "piqa",
        "cnn-dailymail",
    }


def test_perplexities_by_hand():
    measure = Perplexity(Rows(DATA, (), ""))
    records = [
        {"loglikelihood": -20.0, "words": 4, "bytes": 16, "tokens": 8, "windows": [[-15.0, 5], [-5.0, 3]]},
        {"loglikelihood": -4.0, "words": 2, "bytes": 8, "tokens": 4, "windows": [[-4.0, 4]]},
    ]
    got = {name: one.value for name, one in measure.results(records).items()}
    assert got == pytest.approx(
        {
            "word_perplexity": math.exp(24 / 6),
            "byte_perplexity": math.exp(24 / 24),
            "bits_per_byte": 1 / math.log(2),
            "token_perplexity": math.exp(24 / 12),
        }
    )
    few, many = measure.results(records * 10), measure.results(records * ENOUGH_TEXTS)
    assert few["token_perplexity"].value == pytest.approx(many["token_perplexity"].value)
    assert few["token_perplexity"].low < few["token_perplexity"].value < few["token_perplexity"].high
    assert measure.is_right(records[0]) is None
    assert Metric("ppl", "x", of=lambda x: x).sample([{"x": 2}, {"x": 4}])[0](np.array([0, 1, 1])) == 10 / 3


def test_texts_without_words(model, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": ""}\n{"text": "The end."}\n')
    run = evaluate(model, Perplexity(read_rows(path)))
    assert run.records[0]["tokens"] == 0 and run.records[1]["tokens"] > 0
    path.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="has no text"):
        evaluate(model, Perplexity(read_rows(path)))
