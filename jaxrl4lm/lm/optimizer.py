"""The optimizers of language-model training."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax
import optax.contrib

from jaxrl4lm.types import Array, Params, ScalarLike

Optimizer: TypeAlias = Callable[[ScalarLike, Any], optax.GradientTransformation]
"""(learning rate, configuration) → the transformation; both may be traced. It is built anew at every update, from that
update's numbers, so its state must hold arrays only."""


def adam(learning_rate: ScalarLike, config: Any) -> optax.GradientTransformation:
    """Adam behind a clip of the global norm.

    Args:
      config: a record with `max_grad_norm`, `weight_decay` (decoupled, of matrices), `adam_b1`, `adam_b2` and `adam_eps`.
    Reference: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    return _descend(
        optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps), learning_rate, config
    )


def lion(learning_rate: ScalarLike, config: Any) -> optax.GradientTransformation:
    """Lion: the sign of a mean of gradients, which needs a learning rate of about a tenth of Adam's. Arguments as of `adam`.

    Reference: Chen et al. 2023, arXiv:2302.06675.
    """
    return _descend(optax.scale_by_lion(config.adam_b1), learning_rate, config)


def adafactor(learning_rate: ScalarLike, config: Any) -> optax.GradientTransformation:
    """Adam without a mean of gradients, and with the mean of squares of a large matrix kept by rows and columns: hardly any
    memory. Arguments as of `adam`.

    Reference: Shazeer & Stern 2018, arXiv:1804.04235.
    """
    scale = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return _descend(scale, learning_rate, config)


def muon(learning_rate: ScalarLike, config: Any) -> optax.GradientTransformation:
    """Muon: the momentum of each kernel, orthogonalised, at the step length of Adam; Adam for all else. Arguments as of
    `adam`.

    Reference: Jordan et al. 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982 (the step length).
    """
    scale = optax.contrib.muon(
        -1.0,  # `_descend` turns round
        adam_b1=config.adam_b1,
        adam_b2=config.adam_b2,
        eps=config.adam_eps,
        muon_weight_dimension_numbers=_find_kernels,
        consistent_rms=0.2,
    )
    return _descend(scale, learning_rate, config)


OPTIMIZERS: Mapping[str, Optimizer] = {"adam": adam, "adafactor": adafactor, "lion": lion, "muon": muon}
"""What the command line calls them."""


def _descend(
    scale: optax.GradientTransformation, learning_rate: ScalarLike, config: Any
) -> optax.GradientTransformation:
    decays = not isinstance(config.weight_decay, int | float) or config.weight_decay > 0
    decay = [optax.add_decayed_weights(config.weight_decay, mask=_find_matrices)] if decays else []
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        scale,
        *decay,
        optax.scale_by_learning_rate(learning_rate),  # pyright: ignore[reportArgumentType]
    )


def _find_kernels(params: Params) -> Params:
    """What Muon is for: the matrices between hidden states; none for embeddings and vectors."""

    def choose(path: Any, x: Array) -> Any:
        named = jax.tree_util.keystr(path[-1:], simple=True)
        return optax.contrib.MuonDimensionNumbers() if named in ("kernel", "lora_a", "lora_b") else None

    return jax.tree.map_with_path(choose, params)


def _find_matrices(params: Params) -> Params:
    return jax.tree.map(lambda x: x.ndim > 1, params)
