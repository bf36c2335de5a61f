"""CSV files as programs write them, and as they should not be."""

import csv

import pytest

from refgpt._common.errors import DataError
from refgpt.evaluation import read_csv


@pytest.fixture
def file(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_table(file):
    path = file('text,label\n"a, ""b""\nc",x\n\nd,y\n')
    table = read_csv(path)
    assert table.columns == ("text", "label")
    assert table.column("text") == ['a, "b"\nc', "d"] and table.column("label") == ["x", "y"]
    assert table.rows[1] == {"text": "d", "label": "y"}
    assert [table.place(i) for i in (0, 1)] == [f"{path}, line 2", f"{path}, line 5"]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa,b\r\n1,2\r\n", b"a,b\n1,2", b"a,b\r1,2\r", b'"a","b"\n"1","2"\n'])
def test_as_other_programs_write_it(file, content):
    assert read_csv(file(content)).rows == ({"a": "1", "b": "2"},)


def test_a_long_field_is_no_fault_and_no_lasting_change(file):
    before = csv.field_size_limit()
    assert len(read_csv(file("text\n" + "a" * 200_000)).column("text")[0]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty"),
        (b"text,label\n", "has no rows; wanted a line of column names"),
        (b"text\n\n\n", "has no rows"),
        (b"text\na\xff", "is not UTF-8 text; got byte 6; save"),
        (b"text,label\na\n", "line 2: has another number of fields than the first line; got 1; wanted 2; put"),
        (b"text,label\n\n\na,b\nc,d,e\n", "line 5: has another number of fields .*got 3"),
        (b"text,text\na,b\n", "has two columns of one name; got text, text"),
        (b'text\nb\n"a"b\n', "line 3: is not CSV"),
        (b'text\n"a\nb\n', "line 2: is not CSV"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(file, content, said):
    with pytest.raises(DataError, match=f"^[^:]*t.csv[:,] ?{said}"):
        read_csv(file(content))


def test_a_column_that_is_not_there(file):
    with pytest.raises(DataError, match=r"t.csv: there is no such column; got 'txt'; wanted one of text, label"):
        read_csv(file("text,label\na,b\n")).column("txt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_csv(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="path: cannot be used"):
        read_csv(5)
