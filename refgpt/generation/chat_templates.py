"""Conversations as prompts: the formats that models were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from refgpt._common.arguments import one_of
from refgpt._common.errors import GenerationError
from refgpt._common.wording import shown


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
    system : str
        The opening of a conversation that has a system message, in which "{system}" stands for it.
    """

    about: str
    opening: str
    before: str
    between: str
    after: str
    stop: tuple[str, ...]
    system: str = "{system}\n\n"

    def prompt(self, turns: Sequence[tuple[str, str]], question: str) -> str:
        """Format the turns so far, each a question and its answer, and the new question."""
        told = [f"{self.before}{asked}{self._answer(answer)}{self.after}" for asked, answer in turns]
        return f"{self.opening}{''.join(told)}{self.before}{question}{self.between}"

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Format a list of messages as OpenAI's chat interface has them, so that the assistant's text follows.

        Parameters
        ----------
        messages : list of mapping
            Each has a "role", "system" (or "developer"), "user" or "assistant", and a "content", a text or a list of
            {"type": "text", "text": ...}. Texts of the system replace the template's opening. Consecutive messages of
            one role become one, with an empty line between them. If the last message is the assistant's, the text
            that follows continues it.

        Returns
        -------
        str

        Raises
        ------
        GenerationError
            Naming the part that cannot be used, such as "messages[2].content".
        """
        system, turns = _turns(messages)
        opening = self.opening if system is None else self.system.replace("{system}", system)
        pieces = []
        for i, (asked, answer) in enumerate(turns):
            begun = self.between.lstrip() if asked is None else f"{self.before}{asked}{self.between}"
            last = i + 1 == len(turns)
            pieces.append(begun if answer is None else begun + self._gap + answer + ("" if last else self.after))
        return opening + "".join(pieces)

    def pieces_of(self, messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
        """Split messages into pieces of text, each with whether a model has to write it: answers with their ends.

        The pieces before an answer, joined, are the prompt that ``prompt_of`` gives for the messages before it. An
        empty answer is not to be written.

        Parameters and errors are those of ``prompt_of``.
        """
        system, turns = _turns(messages)
        opening = self.opening if system is None else self.system.replace("{system}", system)
        pieces: list[tuple[str, bool]] = []
        for asked, answer in turns:
            begun = self.between.lstrip() if asked is None else f"{self.before}{asked}{self.between}"
            pieces.append((opening + begun, False))
            if answer is not None:
                pieces.append((f"{self._gap}{answer}{self.after}", bool(answer)))
            opening = ""
        return pieces

    def with_character(self, name: str, persona: str) -> ChatTemplate:
        """The same template with "{character}" and "{persona}" filled in."""

        def fill(text: str) -> str:
            return text.replace("{character}", name).replace("{persona}", persona)

        return replace(
            self,
            opening=fill(self.opening),
            between=fill(self.between),
            stop=tuple(map(fill, self.stop)),
            system=fill(self.system),
        )

    @property
    def _gap(self) -> str:
        return "" if self.between.endswith("\n") else " "

    def _answer(self, answer: str) -> str:
        return f"{self.between}{self._gap}{answer}"


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
            "{character}'s Persona: {system}\n<START>\n",
        ),
    }
)


def chat_template(name: str, character: str = "Assistant", persona: str = "") -> ChatTemplate:
    """A template by its name, with its character.

    Raises
    ------
    GenerationError
        If there is no template of this name.
    """
    one_of("template", name, tuple(TEMPLATES), GenerationError)
    return TEMPLATES[name].with_character(character, persona)


def _turns(messages: Any) -> tuple[str | None, list[tuple[str | None, str | None]]]:
    """The system's text or None, and pairs of question and answer; a missing question or answer is None."""
    if not isinstance(messages, list | tuple) or not messages:
        raise GenerationError(
            "cannot be used", where="messages", got=shown(messages), wanted="a list of one message or more"
        )
    system: list[str] = []
    turns: list[tuple[str | None, str | None]] = []
    for i, message in enumerate(messages):
        role, text = _message(message, f"messages[{i}]")
        if role == "system":
            system.append(text)
        elif role == "user":
            if turns and turns[-1][1] is None:
                turns[-1] = f"{turns[-1][0]}\n\n{text}", None
            else:
                turns.append((text, None))
        elif not turns:
            turns.append((None, text))
        else:
            asked, answer = turns[-1]
            turns[-1] = asked, text if answer is None else f"{answer}\n\n{text}"
    if not turns:
        raise GenerationError("only system messages are given", where="messages", wanted="a message of the user")
    return "\n\n".join(system) if system else None, turns


def _message(message: Any, where: str) -> tuple[str, str]:
    """Role and text of a message."""
    if not isinstance(message, Mapping):
        raise GenerationError("cannot be used", where=where, got=shown(message), wanted="an object: role and content")
    role, content = message.get("role"), message.get("content")
    if role == "developer":
        role = "system"
    one_of(f"{where}.role", role, ("system", "user", "assistant"), GenerationError)
    if message.get("tool_calls") or message.get("function_call"):
        raise GenerationError("there are no tools", where=where, wanted="messages that have only text")
    if isinstance(content, str):
        return str(role), content
    if not isinstance(content, list | tuple):
        raise GenerationError("cannot be used", where=f"{where}.content", got=shown(content), wanted="a text")
    for i, part in enumerate(content):
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise GenerationError(
                "cannot be used",
                where=f"{where}.content[{i}]",
                got=shown(part),
                wanted='a part of type "text", as the model reads nothing else',
            )
    return str(role), "".join(part["text"] for part in content)
