"""A conversation with a model: formats its turns as one prompt and drops old turns that no longer fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from refgpt._common.errors import GenerationError
from refgpt._model import Model
from refgpt.generation.params import GenerationParams
from refgpt.tokenizers import Tokenizer


@dataclass(frozen=True)
class ChatTemplate:
    """The format of a conversation that a model was trained on.

    Attributes
    ----------
    about : str
        Which models use it.
    opening : str
        The text before the first turn.
    before, between, after : str
        The text before a question, between question and answer, and after the answer.
    stop : tuple of str
        An answer ends before any of these.
    """

    about: str
    opening: str
    before: str
    between: str
    after: str
    stop: tuple[str, ...]

    def prompt(self, turns: Sequence[tuple[str, str]], question: str) -> str:
        """Format the turns so far, each a question and its answer, and the new question."""
        gap = "" if self.between.endswith("\n") else " "
        told = [f"{self.before}{asked}{self.between}{gap}{answer}{self.after}" for asked, answer in turns]
        return f"{self.opening}{''.join(told)}{self.before}{question}{self.between}"

    def with_character(self, name: str, persona: str) -> ChatTemplate:
        """The same template with "{character}" and "{persona}" filled in."""

        def fill(text: str) -> str:
            return text.replace("{character}", name).replace("{persona}", persona)

        return replace(self, opening=fill(self.opening), between=fill(self.between), stop=tuple(map(fill, self.stop)))


ALPACA = ChatTemplate(
    "models trained on Alpaca's instructions",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "### Instruction:\n",
    "\n\n### Response:\n",
    "\n\n",
    ("### Instruction:", "### Response:"),
)

TEMPLATES: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        "base": ChatTemplate(
            "models without instruction tuning, GPT-J itself among them",
            "A conversation between a curious person and a helpful assistant.\n\n",
            "User: ",
            "\nAssistant:",
            "\n",
            ("\nUser:", "\nAssistant:"),
        ),
        "gpt-jt": ChatTemplate(
            "GPT-JT", "Please answer the following question:\n\n", "Question: ", "\nAnswer:", "\n\n", ("\n",)
        ),
        "alpaca": ALPACA,
        "dolly": replace(ALPACA, about="Dolly 1", after="\n\n### End\n\n", stop=(*ALPACA.stop, "### End")),
        "pygmalion": ChatTemplate(
            "Pygmalion",
            "{character}'s Persona: {persona}\n<START>\n",
            "You: ",
            "\n{character}:",
            "\n",
            ("\nYou:", "\n{character}:", "<START>"),
        ),
    }
)


class Dialogue:
    """A conversation: a model, a template, and the turns so far.

    Parameters
    ----------
    model : Model
        With a tokenizer.
    template : ChatTemplate
    params : GenerationParams
        Sampling parameters of the answers, including the template's stop strings.
    """

    def __init__(self, model: Model, template: ChatTemplate, params: GenerationParams) -> None:
        self.turns: list[tuple[str, str]] = []
        self._model, self._template, self._params = model, template, params

    def ask(self, question: str, write: Callable[[str], object]) -> None:
        """Let the model answer a question.

        Parameters
        ----------
        question : str
        write : callable
            Called with the pieces of the answer, without surrounding spaces and blank lines.

        Raises
        ------
        GenerationError
            If the question alone is too long for the context. The turns stay as they were.
        KeyboardInterrupt
            If Ctrl-C ends the answer; the part that was written stays among the turns.
        """
        config, tokenizer = self._model.config, self._model.tokenizer
        assert tokenizer is not None
        room = config.n_ctx - min(self._params.max_new_tokens, config.n_ctx // 2)
        turns, prompt = fitting(self._template, self.turns, question, tokenizer, room)
        ids = tokenizer.encode(prompt)
        if len(ids) >= config.n_ctx:
            raise GenerationError(
                "is too long: no token of the context remains for an answer",
                where="the question",
                got=f"{len(ids)} tokens, including the template's",
                wanted=f"at most {config.n_ctx - 1}",
                fix="ask in fewer words",
            )
        pieces = self._model.stream(ids, self._params)
        said = waiting = ""
        try:
            for piece in pieces:
                text = waiting + piece
                text = text if said else text.lstrip()
                certain = text.rstrip()  # trailing blanks are held back until more text follows
                waiting = text[len(certain) :]
                if certain:
                    said += certain
                    write(certain)
        finally:
            self.turns = [*turns, (question, said)]

    def reset(self) -> None:
        """Forget all turns."""
        self.turns = []


def fitting(
    template: ChatTemplate, turns: Sequence[tuple[str, str]], question: str, tokenizer: Tokenizer, n_tokens: int
) -> tuple[list[tuple[str, str]], str]:
    """The latest turns whose prompt fits into ``most`` tokens, and that prompt. The question itself always stays."""
    kept = list(turns)
    while True:
        prompt = template.prompt(kept, question)
        if not kept or len(tokenizer.encode(prompt)) <= n_tokens:
            return kept, prompt
        del kept[0]
