"""The demonstrations word for word, and through both backends."""

import pytest

import refgpt
from refgpt.evaluation import DEMO_SETTINGS, DEMOS

PROMPTS = {
    "sentiment": """\
Label the tweets as either "positive", "negative", "mixed", or "neutral":

Tweet: The new bridge is a joy to walk across.
Label: positive

Tweet: The meeting is at noon, in the small room.
Label: neutral

Tweet: Lovely songs, but the sound was dreadful.
Label: mixed

Tweet: My parcel came broken, and nobody answers the phone.
Label:""",
    "topic": """\
Given a news article, classify its topic.
Possible labels: 1. World 2. Sports 3. Business 4. Sci/Tech

Article: Astronomers have found water vapour around a planet no larger than the Earth.
Label: Sci/Tech

Article: Shares fell on Monday after two banks had warned of losses.
Label: Business

Article: The home side scored twice in the last ten minutes and won the cup for the first time.
Label:""",
    "summarize": """\
Given a review from Amazon's food products, the task is to generate a short summary of the given review in the input.

Input: I was given these biscuits as a present and have bought them every month since. They stay crisp, and they are \
not too sweet.
Output: Crisp and not too sweet

Input: Half of the tins were dented, and the peas tasted of metal. I shall not buy them again.
Output: Dented tins, tastes of metal

Input: The coffee arrived within two days. It smells wonderful, and my guests ask for it by name. A little dear, but \
worth it.
Output:""",
    "qa": """\
Please answer the following question:

Question: Where is Zurich?
Answer:""",
}


def test_there_are_four():
    assert DEMOS.keys() == PROMPTS.keys()


@pytest.mark.parametrize("name", DEMOS)
def test_prompts(name):
    assert DEMOS[name].prompt() == PROMPTS[name]
    assert DEMOS[name].prompt("{new}") == PROMPTS[name].replace(DEMOS[name].text, "{new}")


def test_settings_are_those_of_the_page():
    assert (DEMO_SETTINGS.max_new_tokens, DEMO_SETTINGS.top_k, DEMO_SETTINGS.top_p, DEMO_SETTINGS.seed) == (
        10,
        40,
        1,
        42,
    )
    assert DEMO_SETTINGS.stops == ("\n",)


@pytest.mark.parametrize("name", DEMOS)
def test_any_model_can_be_asked(name):
    prompt = DEMOS[name].prompt()
    one, two = (refgpt.load(backend=backend).generate(prompt, DEMO_SETTINGS) for backend in ("c", "numpy"))
    assert one == two
    assert "\n" not in one.text and len(one.ids) <= 10
