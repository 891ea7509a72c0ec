"""What of a model learns: everything, the parameters that a rule names, or low-rank adapters.

Frozen numbers are not part of what is differentiated: they have neither gradient nor optimizer state.
"""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxrl4lm.models import LanguagePolicy, combine, lora, partition
from jaxrl4lm.models.partitioning import Rule
from jaxrl4lm.types import Key, Params

ADAPTERS = 2**32 - 1
"""What the key of a run is folded with to draw adapters: no number of an update."""


class Trainable(NamedTuple):
    """How parameters part into what learns and what is frozen, and come together again."""

    split: Callable[[Key, Params], tuple[Params, Params]]
    """(key, parameters) → (what learns, what is frozen: None if nothing is)."""
    join: Callable[[Params, Params, Key | None], Params]
    """(what learns, what is frozen, key of a step's dropout or None) → parameters to differentiate through."""
    merge: Callable[[Params, Params], Params]
    """The same as parameters of the plain form: to complete texts with, to evaluate and to save."""
    refer: Callable[[Params], Params] = lambda learning: learning
    """The part of what learns that an older policy consists of; `merge` takes it, too."""
    frozen_is_reference: bool = False
    """Whether the frozen part is the whole model from which training began, as it is under adapters."""
    save: Callable[[pathlib.Path, LanguagePolicy, Params], None] | None = None
    """Writes (into a folder, of a model, what learns) in a form that others read. None: it is nothing by itself."""


def everything() -> Trainable:
    """All parameters learn."""
    return Trainable(
        split=lambda key, params: (params, None),
        join=lambda learning, frozen, key: learning,
        merge=lambda learning, frozen: learning,
    )


def matching(rule: Rule) -> Trainable:
    """The parameters learn whose path the rule names, as `models.match_paths("layer_11/", "final_norm")` does."""
    return Trainable(
        split=lambda key, params: partition(params, rule),
        join=lambda learning, frozen, key: combine(learning, frozen),
        merge=combine,
    )


def adapters(
    rank: int = 16,
    alpha: float = 32.0,
    targets: Rule = lora.EVERY_DENSE,
    *,
    dropout: float = 0.0,
    base: str | None = None,
) -> Trainable:
    """Low-rank adapters of the kernels that `targets` names learn, scaled by alpha / rank; the base is the reference.

    Args:
      dropout: share of an adapter's inputs that a training step leaves out.
      base: name or folder of the model, for the adapter's configuration.
    Raises:
      ValueError: if dropout is no share below 1.
    Reference: Hu et al. 2021, arXiv:2106.09685.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
    scale = alpha / rank
    return Trainable(
        split=lambda key, params: (lora.init(key, params, rank, targets), params),
        join=lambda learning, frozen, key: lora.attach(frozen, learning, scale, dropout=dropout, key=key),
        merge=lambda learning, frozen: lora.merge(frozen, learning, scale),
        frozen_is_reference=True,
        save=partial(_save_adapters, alpha, dropout, base),
    )


def _save_adapters(
    alpha: float,
    dropout: float,
    base: str | None,
    folder: pathlib.Path,
    policy: LanguagePolicy,
    learning: Params,
) -> None:
    lora.save(folder, policy, learning, alpha, dropout=dropout, base=base)
