"""The families that have a backward pass, and what code that all of them share asks of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import listed
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of
from refgpt.spec.gradients import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.spec.gradients.wanted import LeafGradients
from refgpt.spec.taps import Tap, no_tap


class Family(Protocol):
    """A module that specifies a family's gradients, beside the one of ``refgpt.spec`` that specifies its models."""

    def backward(
        self,
        params: Any,
        config: Any,
        ids: np.ndarray,
        trace: Mapping[str, np.ndarray],
        dlogits: np.ndarray,
        leaves: LeafGradients,
        tap: Tap = no_tap,
    ) -> None:
        """Gradients of leaves and activations: see ``refgpt.spec.gradients.gptj.backward``."""
        ...


#: By family, as ``refgpt.spec.FAMILIES``.
FAMILIES: dict[str, Family] = {"gptj": gptj, "gpt2": gpt2, "gpt_neo": gpt_neo, "gpt_neox": gpt_neox}


def gradients_of(config: AnyConfig) -> Family:
    """The module that specifies the gradients of a configuration's family.

    Raises
    ------
    RefgptError
        If the family has none.
    """
    family_of(config)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise RefgptError(
            "this family of models has no gradients here, so it can be run but not trained",
            where="model",
            got=config.model_type,
            wanted=listed(FAMILIES),
        )
    return family
