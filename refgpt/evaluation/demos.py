"""The four demonstrations with which GPT-JT was announced, as ready prompts for any model.

Instructions and field names are those of its authors' own prompts for them, the settings those of the public demo page
(https://huggingface.co/spaces/togethercomputer/GPT-JT); the examples and texts are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refgpt.evaluation.templates import Template
from refgpt.generation.params import GenerationParams

#: One line, nearly greedy, and the same each time.
DEMO_SETTINGS = GenerationParams(max_new_tokens=10, temperature=0.1, top_k=40, top_p=1.0, seed=42, stop="\n")


@dataclass(frozen=True)
class Demo:
    """A task in a prompt.

    Attributes
    ----------
    about : str
        What it shows, in a few words.
    template : Template
    examples : tuple of (str, str)
        Texts and what should follow them, shown before the text that is asked about.
    text : str
        Asked about if no other is given.
    """

    about: str
    template: Template
    examples: tuple[tuple[str, str], ...]
    text: str

    def prompt(self, text: str | None = None) -> str:
        """The whole prompt, for the demonstration's own text or another."""
        return self.template.prompt(self.text if text is None else text, self.examples)


DEMOS: Mapping[str, Demo] = MappingProxyType(
    {
        "sentiment": Demo(
            "sentiment analysis: positive, negative, mixed or neutral",
            Template(
                'Label the tweets as either "positive", "negative", "mixed", or "neutral":\n\n', "Tweet: ", "\nLabel: "
            ),
            (
                ("The new bridge is a joy to walk across.", "positive"),
                ("The meeting is at noon, in the small room.", "neutral"),
                ("Lovely songs, but the sound was dreadful.", "mixed"),
            ),
            "My parcel came broken, and nobody answers the phone.",
        ),
        "topic": Demo(
            "topic classification of news",
            Template(
                "Given a news article, classify its topic.\n"
                "Possible labels: 1. World 2. Sports 3. Business 4. Sci/Tech\n\n",
                "Article: ",
                "\nLabel: ",
            ),
            (
                ("Astronomers have found water vapour around a planet no larger than the Earth.", "Sci/Tech"),
                ("Shares fell on Monday after two banks had warned of losses.", "Business"),
            ),
            "The home side scored twice in the last ten minutes and won the cup for the first time.",
        ),
        "summarize": Demo(
            "summary of a review",
            Template(
                "Given a review from Amazon's food products, the task is to generate a short summary of the given "
                "review in the input.\n\n",
                "Input: ",
                "\nOutput: ",
            ),
            (
                (
                    "I was given these biscuits as a present and have bought them every month since. They stay crisp, "
                    "and they are not too sweet.",
                    "Crisp and not too sweet",
                ),
                (
                    "Half of the tins were dented, and the peas tasted of metal. I shall not buy them again.",
                    "Dented tins, tastes of metal",
                ),
            ),
            "The coffee arrived within two days. It smells wonderful, and my guests ask for it by name. A little dear, "
            "but worth it.",
        ),
        "qa": Demo(
            "question answering",
            Template("Please answer the following question:\n\n", "Question: ", "\nAnswer: "),
            (),
            "Where is Zurich?",
        ),
    }
)
