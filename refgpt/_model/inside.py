"""Looking inside a loaded model: logits, activations, and texts as vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import RefgptError
from refgpt.runtime.engine import Engine

if TYPE_CHECKING:
    from refgpt.generation.prompts import Prompt
    from refgpt.tracing import Indices, Names, Patches, Report, TapResult


class Inside:
    """The part of ``refgpt.Model`` that looks at single passes; see there for the attributes."""

    engine: Engine
    backend: str
    if TYPE_CHECKING:

        def _named(self, adapter: str | None) -> Any: ...

    def logits(self, ids: Sequence[int], prefix_len: int = 0, adapter: str | None = None) -> np.ndarray:
        """Scores for the next token at every position of a text.

        Parameters
        ----------
        ids : sequence of int [t]
        prefix_len : int
            Number of leading positions that see one another; 0 is the causal mask, whatever ``mask`` is.
        adapter : str, optional
            The name of one of ``adapters``; by default none.

        Returns
        -------
        ndarray [t, n_vocab]
            float32, or float64 for the NumPy backend with dtype "f64". Includes rows of the head for which the
            tokenizer has no token.

        Raises
        ------
        GenerationError
            If an id does not exist or there are too many ids.
        """
        return self._named(adapter).engine.logits(ids, prefix_len)

    def trace(
        self,
        ids: str | Sequence[int],
        prefix_len: int = 0,
        names: Names | None = None,
        *,
        positions: Indices = None,
        patch: Patches | None = None,
        gradients: bool = False,
        labels: Sequence[int] | None = None,
        adapter: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Named activations of one forward pass. Only the requested activations are kept.

        Parameters
        ----------
        ids : str or sequence of int [t]
            A text, if there is a tokenizer, or its ids.
        prefix_len : int
            Number of leading positions that see one another; 0 is the causal mask, whatever ``mask`` is.
        names : str or collection of str, optional
            Names of ``refgpt.spec.tap_names(config)``, or patterns such as "blocks.*.pattern"; by default all
            activations.
        positions : int, slice or sequence of int, optional
            Rows of each activation to keep, by default all: queries for "pattern" [h, t, s], otherwise axis 0.
        patch : mapping, or sequence of mappings, optional
            Replacements: maps names or patterns to a function, an array, or the result of ``refgpt.tracing.zero_heads``
            and similar functions.
        gradients : bool
            Give not the activations but, under the same names, the gradient of the loss by each: see
            ``refgpt.tracing.record_gradients``. Nothing can be patched then.
        labels : sequence of int [t], optional
            What the loss is of: the token wanted at each position, not shifted, or -100 for no target. By default the
            text itself.
        adapter : str, optional
            The name of one of ``adapters``; by default none.

        Returns
        -------
        dict of str to ndarray
            In the order they were computed, with the axes that ``refgpt.spec.tap_axes`` gives.

        Raises
        ------
        RefgptError
            If an argument cannot be used, or the trace needs more memory than there is; the error then says how much,
            and which argument to narrow. Raised before anything is computed.
        """
        from refgpt.tracing import record, record_gradients

        model = self._named(adapter)
        if not flag("gradients", gradients, RefgptError):
            if labels is not None:
                raise RefgptError("only a loss has labels", where="labels", fix="say gradients=True, or leave them out")
            return record(model, ids, prefix_len, names, positions, patch)
        if patch is not None:
            raise RefgptError(
                "a pass in which activations are replaced has no gradients here",
                where="patch",
                fix="leave out patch or gradients",
            )
        return record_gradients(model, ids, prefix_len, names, positions, labels)

    def verify(
        self,
        ids: Sequence[int],
        prefix_len: int = 0,
        *,
        progress: bool = False,
        on_tap: Callable[[TapResult], object] | None = None,
        adapter: str | None = None,
    ) -> Report:
        """Compare every activation of one forward pass with the float64 spec: see ``refgpt.tracing.verify``.

        Parameters and errors are those of that function; ``adapter`` is the name of one of ``adapters``.
        ``report.first_broken`` is None if all activations are within their bounds. This holds for the C kernels; the
        NumPy backend in float32 exceeds the bound at "mlp_post", where its ``1 + tanh`` loses digits. Kernels that do
        not compute the promised bits raise a KernelError, even if they are within the bounds.
        """
        from refgpt.tracing import verify

        model = self._named(adapter)
        if self.backend == "c":
            from refgpt.kernels import check_bits

            check_bits()

        return verify(model.engine, model.params(), ids, prefix_len, progress=progress, on_tap=on_tap)

    def embed(
        self,
        texts: Prompt | Sequence[Prompt] | np.ndarray,
        layer: int = -1,
        pooling: str = "mean",
        adapter: str | None = None,
    ) -> np.ndarray:
        """Texts as vectors: hidden states, pooled over the positions of each text. See ``refgpt.tracing.embed``.

        Parameters
        ----------
        texts : list of str or of list of int
            One text alone is a list of one.
        layer : int
            0 is the embedding, i the residual stream after the i-th block, -1 the final LayerNorm's output.
        pooling : "mean", "last", "first" or "max"
        adapter : str, optional
            The name of one of ``adapters``; by default none.

        Returns
        -------
        ndarray [n, c], float32
            Each row depends on its text alone, to the last bit.

        Raises
        ------
        GenerationError
            If a text or an argument cannot be used; before anything is computed.
        """
        from refgpt.tracing import embed

        return embed(self._named(adapter), texts, layer, pooling)
