"""``refgpt classify``."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence

from refgpt._common.errors import DataError
from refgpt._common.progress import counted
from refgpt._common.wording import shown
from refgpt.cli.loading import load_model, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments, unescaped
from refgpt.cli.printing import print_line
from refgpt.cli.results import Output, check_suffix, files_read, json_line, open_output, refuse_inputs
from refgpt.evaluation import (
    DEFAULT_TEMPLATE,
    NORMALISATIONS,
    Classification,
    Classifier,
    Table,
    Template,
    accuracy,
    check_labels,
    classify_column,
    codes,
    estimate,
    macro_f1,
    mean_over_trials,
    read_csv,
)

EXAMPLES = """examples:
  refgpt classify reviews.csv --labels positive,negative --text-column review
  refgpt classify -m ~/gpt-jt reviews.csv --labels good,bad --text-column review --label-column verdict -o out.csv
  refgpt classify reviews.csv --labels good,bad --template "Good or bad?\\n\\nReview: {text}\\nIt is: {label}"
"""


def add_to(commands: Commands) -> None:
    """Declare ``classify``."""
    classify = add_command(commands, "classify", _classify, "label the texts of a CSV file", EXAMPLES)
    add = classify.add_argument
    add("file", metavar="FILE", help="CSV file in UTF-8 whose first line names the columns")
    add(
        "--labels",
        required=True,
        metavar="A,B,..",
        help="the labels; put double quotes around one that contains a comma",
    )
    add("--text-column", default="text", metavar="NAME", help="the column of texts (default: text)")
    add("--label-column", metavar="NAME", help="the column of correct labels, if there is one: prints the accuracy")
    add(
        "--template",
        default=DEFAULT_TEMPLATE,
        metavar="TEXT",
        help=r"prompt format for a text and a label; \n is a new line (default: %(default)r)",
    )
    add(
        "--examples",
        metavar="FILE",
        help="CSV file with the same columns, whose rows are shown as examples before each text",
    )
    add(
        "--normalise",
        choices=NORMALISATIONS,
        default="sum",
        help="the score of a label: its log-likelihood (sum), the mean over its tokens (mean), or its log-likelihood "
        "minus that without a text before it (pmi) (default: sum)",
    )
    add("-o", "--output", metavar="FILE", help="write to a .csv or .jsonl file (default: CSV to standard output)")
    add_running_arguments(classify)


def _classify(arguments: argparse.Namespace) -> int:
    table = read_csv(arguments.file)
    labels = check_labels(_labels(arguments.labels))
    template = Template.parse(unescaped(arguments.template), labels)
    table.column(arguments.text_column)
    gold = None if arguments.label_column is None else table.labels(arguments.label_column, labels)
    examples = [] if arguments.examples is None else _examples(arguments, labels)
    writer = _writer(arguments.output, table, labels)
    inputs = [path for path in (arguments.file, arguments.examples) if path is not None]
    with open_output(arguments.output, inputs) as output:
        write = writer(output)
        model = load_model(arguments, arguments.backend)
        if output.path is not None:
            refuse_inputs(arguments.output, files_read(model.checkpoint.path, arguments.output))
        classifier = Classifier(model, labels, template, examples, arguments.normalise)
        results = classify_column(classifier, table, arguments.text_column)
        predicted = []
        shown = arguments.output is not None or not sys.stdout.isatty()  # a bar would break up the rows
        with counted(shown and watched(), len(table.rows), "row", "classifying", leave=False) as one_more:
            for row, result in zip(table.rows, results, strict=True):
                write(row, result)
                predicted.append(result.label)
                one_more()
    if gold is not None:
        summary = sys.stderr if output.path is None else sys.stdout
        given, guessed = codes(gold, labels), [codes(predicted, labels)]
        for name, metric in {"accuracy": accuracy, "macro-F1": macro_f1}.items():
            print_line(f"{name:<10}{estimate(mean_over_trials(metric, given, guessed))}", summary)
    return 0


def _labels(text: str) -> list[str]:
    """Labels with commas between, as a line of CSV has them."""
    try:
        return [label.strip() for label in next(csv.reader([text], skipinitialspace=True))]
    except csv.Error as error:
        raise DataError(f"cannot be read ({error})", where="--labels", got=shown(text)) from None


def _examples(arguments: argparse.Namespace, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Examples (text, label) from a file with the same columns."""
    if arguments.label_column is None:
        raise DataError("needs the column of labels", where="--examples", fix="name it with --label-column")
    table = read_csv(arguments.examples)
    texts = table.column(arguments.text_column)
    return list(zip(texts, table.labels(arguments.label_column, labels), strict=True))


Write = Callable[[dict[str, str], Classification], None]


def _writer(path: str | None, table: Table, labels: Sequence[str]) -> Callable[[Output], Write]:
    """Return a function that turns an output into a writer of result rows, by the kind of file."""
    as_json = check_suffix(path, ".csv", ".jsonl") == ".jsonl"
    added = ["predicted", *(["probabilities", "scores"] if as_json else [f"p({label})" for label in labels])]
    if taken := [name for name in added if name in table.columns]:
        raise DataError(
            "has a column with the name of a result column", where=table.path, got=taken[0], fix="rename it"
        )

    def csv_rows(output: Output) -> Write:
        rows = csv.writer(output, lineterminator="\n")
        header = [[*table.columns, *added]]

        def write(row: dict[str, str], found: Classification) -> None:
            if header:  # written with the first row: a header alone is not a result
                rows.writerow(header.pop())
            rows.writerow([*row.values(), found.label, *(f"{p:.6g}" for p in found.probabilities.values())])

        return write

    def json_lines(output: Output) -> Write:
        line = json_line(output)
        return lambda row, found: line(
            {**row, "predicted": found.label, "probabilities": found.probabilities, "scores": found.scores}
        )

    return json_lines if as_json else csv_rows
