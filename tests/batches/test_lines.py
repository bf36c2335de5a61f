"""Files of prompts: every line is a request or an error, whatever it holds, and lines keep their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from refgpt import DataError
from refgpt.batches import lines as module
from refgpt.batches.lines import Lines


def found_in(folder: Path, name: str, raw: bytes, **options: str) -> list[tuple[int, object]]:
    """Number of each line, with its content or its error."""
    path = folder / name
    path.write_bytes(raw)
    lines = Lines(path, **options)
    found = [(line.number, line.content if line.error is None else str(line.error)) for line in lines]
    assert lines.n_lines == len(found) and [number for number, _ in lines_of(lines)] == [n for n, _ in found]
    return found


def lines_of(lines: Lines) -> list[tuple[int, object]]:
    return [(line.number, line.content) for line in lines]


def test_json_lines_may_be_bad_without_harm_to_others(tmp_path):
    raw = (
        b'\xef\xbb\xbf{"prompt": "a"}\n\n  \r\n{"prompt": \n["b"]\n{"a": 1, "a": 2}\n{"p": NaN}\n\xff\n{"prompt": "z"}'
    )
    found = found_in(tmp_path, "p.jsonl", raw)
    assert [number for number, _ in found] == [1, 4, 5, 6, 7, 8, 9]
    assert found[0] == (1, {"prompt": "a"}) and found[-1] == (9, {"prompt": "z"})
    for (number, error), why in zip(
        found[1:-1], ["not JSON", "not an object", "twice", "not finite", "UTF-8"], strict=True
    ):
        assert f"line {number}: " in str(error) and why in str(error) and "download" not in str(error)


def test_a_line_that_is_too_long_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE", 20)
    monkeypatch.setattr(module, "PIECE", 7)
    long = b'{"prompt": "' + 50 * b"x" + b'"}\n'
    found = found_in(tmp_path, "p.jsonl", long + b'{"prompt": "a"}\n' + long)
    assert found[1] == (2, {"prompt": "a"})
    assert [number for number, _ in found] == [1, 2, 3] and "too long" in str(found[0]) and "too long" in str(found[2])
    found = found_in(tmp_path, "p.csv", b"prompt\n" + 50 * b"x" + b"\nb\n")
    assert "too long" in str(found[0]) and found[1] == (3, {"prompt": "b"})


def test_each_line_of_a_text_that_is_not_blank_is_a_prompt(tmp_path):
    found = found_in(tmp_path, "p.txt", "\ufeffOnce \r\n\n \t\nÅ\\n b\nlast".encode() + b"\n\xc3\n")
    assert found[:3] == [(1, {"prompt": "Once "}), (4, {"prompt": "Å\\n b"}), (5, {"prompt": "last"})]
    assert found[3][0] == 6 and "UTF-8" in str(found[3])


def test_columns_are_prompts_parameters_ids_and_what_is_carried_along(tmp_path):
    raw = b'\xef\xbb\xbfid,text,max_tokens,stop,label,logit_bias\r\na,"one,\ntwo",5,7,good,"{""3"": 1}"\n\n,b,,,bad,x\n'
    found = found_in(tmp_path, "p.csv", raw, prompt_column="text")
    assert found == [
        (
            2,
            {
                "prompt": "one,\ntwo",
                "id": "a",
                "max_tokens": 5,
                "stop": "7",
                "logit_bias": {"3": 1},
                "metadata": {"label": "good"},
            },
        ),
        (
            5,
            {
                "prompt": "b",
                "id": "",
                "max_tokens": None,
                "stop": None,
                "logit_bias": "x",
                "metadata": {"label": "bad"},
            },
        ),
    ]


def test_bad_rows_are_errors_of_their_own(tmp_path):
    raw = b'prompt,id\na,1\nb\n\xff,2\nc,3,4\n"d" x,5\ne,6\n"f\n'
    found = found_in(tmp_path, "p.csv", raw)
    assert [number for number, _ in found] == [2, 3, 4, 5, 6, 7, 8]
    assert found[0] == (2, {"prompt": "a", "id": "1"}) and found[5] == (7, {"prompt": "e", "id": "6"})
    for i, why in {1: "number of fields", 2: "UTF-8", 3: "number of fields", 4: "not CSV", 6: "not CSV"}.items():
        assert why in str(found[i][1]) and f"line {found[i][0]}: " in str(found[i][1])


@pytest.mark.parametrize(
    "name, raw, why",
    [
        ("p.jsonl", b"\n \n", "no requests"),
        ("p.csv", b"prompt\n", "no requests"),
        ("p.csv", b"text\na\n", "no such column"),
        ("p.csv", b"", "no such column"),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns"),
        ("p.csv", b'"prompt\n', "not CSV"),
        ("p.parquet", b"PAR1", "does not say"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(tmp_path, name, raw, why):
    with pytest.raises(DataError, match=why):
        found_in(tmp_path, name, raw)


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lines(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").write_bytes(b"{}")
    with pytest.raises(DataError, match="format"):
        Lines(tmp_path / "p.jsonl", "xml")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n')
    lines = Lines(path)
    with open(path, "ab") as file:
        file.write(b'{"prompt": "c"}\n')
    with pytest.raises(DataError, match="changed"):
        list(lines)
