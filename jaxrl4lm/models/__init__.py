"""Networks as policies; the only floor that imports flax."""

from jaxrl4lm.models.policy import Carry, LanguagePolicy, parameter_count, positions_of
from jaxrl4lm.models.transformer import Cache, Transformer, TransformerConfig

__all__ = [
    "Cache",
    "Carry",
    "LanguagePolicy",
    "Transformer",
    "TransformerConfig",
    "parameter_count",
    "positions_of",
]
