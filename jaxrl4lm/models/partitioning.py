"""Fine-tuning a part: parameters split by a rule on their paths, so that frozen ones have no optimizer state."""

import re
from collections.abc import Callable

import jax

from jaxrl4lm.types import Params

Rule = Callable[[str], bool]
"""Whether a parameter is trained, from its path: the keys of the tree joined by `/`."""


def match_paths(*patterns: str) -> Rule:
    """A rule that trains the parameters whose path contains a match of any of the regular expressions.

    >>> match_paths("layer_1/", "final_norm")("layer_1/mlp/up/kernel")
    True
    """
    return lambda path: any(re.search(pattern, path) for pattern in patterns)


def path_of(keys: tuple) -> str:
    """The path of a leaf, from the keys that `jax.tree_util` gives: of dicts, named tuples and sequences."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys)


def partition(params: Params, trained: Rule) -> tuple[Params, Params]:
    """Two trees of the same form, (trained, frozen): each holds None where the other holds the array.

    None is no leaf: gradients with respect to the first tree, and optimizer states made of it, leave frozen ones out.

    Raises:
      ValueError: if the rule trains nothing.
    """

    def part(keep: bool) -> Params:
        return jax.tree.map_with_path(lambda keys, x: x if trained(path_of(keys)) == keep else None, params)

    if not jax.tree.leaves(part(True)):
        paths = (path_of(keys) for keys, _ in jax.tree.leaves_with_path(params))
        names = dict.fromkeys(re.sub(r"layer_\d+", "layer_N", path) for path in paths)
        raise ValueError(f"no parameter is trained by this rule: give one for some of {', '.join(names)}")
    return part(True), part(False)


def combine(trained: Params, frozen: Params) -> Params:
    """The whole tree, from the two that `partition` made."""
    return jax.tree.map(lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None)
