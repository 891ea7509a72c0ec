"""Networks as policies; the only floor that imports flax."""

from jaxrl4lm.models.config import Rope, TransformerConfig
from jaxrl4lm.models.huggingface import load, save
from jaxrl4lm.models.policy import Carry, LanguagePolicy, parameter_count, positions_of
from jaxrl4lm.models.tensor_files import CheckpointError
from jaxrl4lm.models.transformer import Cache, Transformer

__all__ = [
    "Cache",
    "Carry",
    "CheckpointError",
    "LanguagePolicy",
    "Rope",
    "Transformer",
    "TransformerConfig",
    "load",
    "parameter_count",
    "positions_of",
    "save",
]
