"""Templates word for word, and what is wrong with bad ones."""

import pytest

from refgpt._common.errors import GenerationError
from refgpt.evaluation import DEFAULT_TEMPLATE, Template
from refgpt.evaluation.templates import check_examples, check_labels

LABELS = ("positive", "negative")
EXAMPLES = [("Lovely.", "positive"), ("Awful.", "negative")]


def test_the_default_is_the_form_of_natural_instructions():
    template = Template.parse(DEFAULT_TEMPLATE, LABELS)
    assert template.prompt("So so.") == "Possible labels:\n1. positive\n2. negative\n\nInput: So so.\nOutput:"
    assert template.prompt("So so.", EXAMPLES) == (
        "Possible labels:\n1. positive\n2. negative\n\n"
        "Input: Lovely.\nOutput: positive\n\n"
        "Input: Awful.\nOutput: negative\n\n"
        "Input: So so.\nOutput:"
    )
    assert template.answer("negative") == " negative"
    assert template.neutral == "Output:"


@pytest.mark.parametrize(
    "template, prompt, shown, answer, neutral",
    [
        ("{text}", "T", "E x\n\nT", " x", ""),
        ("{text} {label}", "T", "E x\n\nT", " x", ""),
        ("Tweet: {text}\nMood:", "Tweet: T\nMood:", "Tweet: E\nMood: x\n\nTweet: T\nMood:", " x", "Mood:"),
        ("{text}\n", "T\n", "E\nx\n\nT\n", "x", ""),
        ("{text}=>{label};", "T=>", "E=>x;\n\nT=>", "x", "=>"),
        ("A\n\nB\n\n{text}:  {label}\n###\n", "A\n\nB\n\nT:", "A\n\nB\n\nE:  x\n###\n\nT:", "  x", ":"),
        ("{{{text}}} is {{}} {label}", "{T} is {}", "{E} is {} x\n\n{T} is {}", " x", "} is {}"),
        (
            "{text}\nOf\n{labels}\nit is",
            "T\nOf\n1. x\n2. y\nit is",
            "E\nOf\n1. x\n2. y\nit is x\n\nT\nOf\n1. x\n2. y\nit is",
            " x",
            "Of\n1. x\n2. y\nit is",
        ),
    ],
)
def test_other_forms(template, prompt, shown, answer, neutral):
    parsed = Template.parse(template, ["x", "y"])
    assert parsed.prompt("T") == prompt
    assert parsed.prompt("T", [("E", "x")]) == shown
    assert parsed.answer("x") == answer
    assert parsed.neutral == neutral


def test_texts_are_put_in_as_they_are():
    parsed = Template.parse(DEFAULT_TEMPLATE, LABELS)
    for text in ("{label} {0} {text.__class__} }{", " two  spaces ", "a\n\nb", ""):
        assert parsed.prompt(text).endswith(f"\n\nInput: {text}\nOutput:")


@pytest.mark.parametrize(
    "template, said",
    [
        ("Input: {label}", "has no {text}"),
        ("", "has no {text}"),
        ("{text} {words}", "has an unknown field {words}"),
        ("{text} {}", "has an unknown field {}"),
        ("{text.__class__}", "has an unknown field {text.__class__}"),
        ("{text[0]}", r"has an unknown field {text\[0\]}"),
        ("{text!r}", "formats the field {text}"),
        ("{text:>10}", "formats the field {text}"),
        ("{text} {text}", "has the field {text} twice"),
        ("{label}: {text}", "has {label} before {text}"),
        ("{text", r"is no format string \("),
        ("{text} }", r"is no format string \("),
        (None, "is no text; got None"),
    ],
)
def test_a_bad_template_is_explained(template, said):
    with pytest.raises(GenerationError, match=f"^template: {said}.*Input: {{text}}.*{{{{ or }}}}$"):
        Template.parse(template, LABELS)


@pytest.mark.parametrize(
    "labels, said",
    [
        ("positive", "cannot be used; got 'positive'; wanted a list of texts"),
        ({"a", "b"}, "wanted a list of texts"),
        (["a", 1], "got 1; wanted texts"),
        (["a", ""], "got ''"),
        (["a", " b"], "got ' b'; .*without spaces around"),
        (["a", "b\nc"], "one line"),
        (["a", "b", "a"], "are not all different; got 'a' twice"),
        (["a"], r"leave no choice; got \['a'\]; wanted two"),
        ([], "leave no choice"),
    ],
)
def test_bad_labels_are_explained(labels, said):
    with pytest.raises(GenerationError, match=f"^labels: .*{said}"):
        check_labels(labels)


@pytest.mark.parametrize(
    "examples, said",
    [
        (["ab"], r"examples\[0\]: cannot be used; got 'ab'; wanted a pair"),
        ([("a", "positive"), ("b",)], r"examples\[1\]: cannot be used"),
        ([("a", 1)], "pair of texts"),
        ([("a", "neutral")], "not among the labels; got 'neutral'; wanted 'positive', 'negative'"),
    ],
)
def test_bad_examples_are_explained(examples, said):
    with pytest.raises(GenerationError, match=said):
        check_examples(examples, LABELS)
