"""From a format's named tensors to a family's parameter tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import listed
from refgpt.checkpoints.checkpoint import check_params
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of, leaf_shapes

#: From the names of tensors that are missing and of those that are unknown to the way out; from none if a shape is
#: another than the configuration says.
WayOut = Callable[[list[str], list[str]], str]


@dataclass(frozen=True)
class Names:
    """What a format calls the tensors of a family.

    Attributes
    ----------
    model : mapping of str to str
        Of each leaf that the model has once.
    block : mapping of str to str
        Of each leaf of a block, with "{}" for the block's number.
    """

    model: Mapping[str, str]
    block: Mapping[str, str]

    def __call__(self, leaf: str) -> str:
        """Where a leaf is stored: "blocks.3.wq" -> "h.3.attn.q_proj.weight"."""
        if leaf in self.model:
            return self.model[leaf]
        _, i, name = leaf.split(".")
        return self.block[name].format(i)


def named_params(
    tensors: Mapping[str, Leaf], names: Callable[[str], str], title: str, config: AnyConfig, path: Path, way_out: WayOut
) -> ParamTree:
    """The parameter tree over named tensors; nothing is copied.

    Parameters
    ----------
    names : callable
        From a leaf to what the file calls it.
    title : str
        What people call the family.

    Raises
    ------
    CheckpointError
        Naming every tensor that is missing, unknown or of another shape than the configuration says.
    """
    stored = {leaf: names(leaf) for leaf in leaf_shapes(config)}
    missing = [name for name in stored.values() if name not in tensors]
    unknown = sorted(tensors.keys() - set(stored.values()))
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(stored)} tensors of a {title} are missing",
            where=path,
            got=f"no {listed(missing)}",
            fix=way_out(missing, unknown),
        )
    if unknown:
        raise CheckpointError(
            f"there are tensors that have no place in {title}",
            where=path,
            got=listed(unknown),
            fix=way_out(missing, unknown),
        )
    params = family_of(config).Params.from_leaves(
        {leaf: tensors[name] for leaf, name in stored.items()}, config.n_layer
    )
    check_params(params, config, stored, path, way_out(missing, unknown))
    return params
