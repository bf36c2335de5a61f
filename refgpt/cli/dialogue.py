"""A conversation with a model: formats its turns as one prompt and drops old turns that no longer fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from refgpt._common.errors import GenerationError
from refgpt._model import Model
from refgpt.generation.chat_templates import ChatTemplate
from refgpt.generation.params import GenerationParams
from refgpt.tokenizers import Tokenizer


class Dialogue:
    """A conversation: a model, a template, and the turns so far.

    Parameters
    ----------
    model : Model
        With a tokenizer.
    template : ChatTemplate
    params : GenerationParams
        Sampling parameters of the answers, including the template's stop strings.
    draft : Model, optional
        See ``Model.generate``.
    """

    def __init__(
        self, model: Model, template: ChatTemplate, params: GenerationParams, draft: Model | None = None
    ) -> None:
        self.turns: list[tuple[str, str]] = []
        self._model, self._template, self._params, self._draft = model, template, params, draft

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
        pieces = self._model.stream(ids, self._params, draft=self._draft)
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
