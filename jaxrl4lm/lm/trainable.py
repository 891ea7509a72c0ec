"""What of a model learns: everything, the parameters that a rule names, or low-rank adapters.

Frozen numbers are not part of what is differentiated: they have neither gradient nor optimizer state.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxrl4lm.models import combine, lora, partition
from jaxrl4lm.models.partitioning import Rule
from jaxrl4lm.types import Key, Params

ADAPTERS = 2**32 - 1
"""What the key of a run is folded with to draw adapters: no number of an update."""


class Trainable(NamedTuple):
    """How parameters part into what learns and what is frozen, and come together again."""

    split: Callable[[Key, Params], tuple[Params, Params]]
    """(key, parameters) → (what learns, what is frozen: None if nothing is)."""
    join: Callable[[Params, Params], Params]
    """(what learns, what is frozen) → parameters to differentiate through."""
    merge: Callable[[Params, Params], Params]
    """The same as parameters of the plain form: to complete texts with, to evaluate and to save."""
    frozen_is_reference: bool = False
    """Whether the frozen part is the whole model from which training began, as it is under adapters."""


def everything() -> Trainable:
    """All parameters learn."""
    return Trainable(
        split=lambda key, params: (params, None),
        join=lambda learning, frozen: learning,
        merge=lambda learning, frozen: learning,
    )


def matching(rule: Rule) -> Trainable:
    """The parameters learn whose path the rule names, as `models.match_paths("layer_11/", "final_norm")` does."""
    return Trainable(split=lambda key, params: partition(params, rule), join=combine, merge=combine)


def adapters(rank: int = 16, alpha: float = 32.0, targets: Rule = lora.EVERY_DENSE) -> Trainable:
    """Low-rank adapters of the kernels that `targets` names learn, scaled by alpha / rank; the base is the reference.

    Reference: Hu et al. 2021, arXiv:2106.09685.
    """
    scale = alpha / rank
    return Trainable(
        split=lambda key, params: (lora.init(key, params, rank, targets), params),
        join=lambda learning, frozen: lora.attach(frozen, learning, scale),
        merge=lambda learning, frozen: lora.merge(frozen, learning, scale),
        frozen_is_reference=True,
    )
