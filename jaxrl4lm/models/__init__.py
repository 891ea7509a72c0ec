"""Networks as policies; the only floor that imports flax."""

from jaxrl4lm.models import lora
from jaxrl4lm.models.cache import Cache, Prefix
from jaxrl4lm.models.config import Rope, TransformerConfig
from jaxrl4lm.models.control import Convolution, Network, Perceptron, RecurrentPolicy
from jaxrl4lm.models.head_files import load_backbone, load_with_head, new_head, save_with_head
from jaxrl4lm.models.heads import Head, Pooler, init_head, sequence_outputs, span_outputs, token_outputs
from jaxrl4lm.models.huggingface import load, save
from jaxrl4lm.models.memory_policy import MemoryPolicy, TransformerPolicy
from jaxrl4lm.models.partitioning import combine, match_paths, partition
from jaxrl4lm.models.policy import Carry, LanguagePolicy, parameter_count, positions_of
from jaxrl4lm.models.sharding import batch_sharding, make_mesh, place, put_batch, shardings
from jaxrl4lm.models.tensor_files import CheckpointError
from jaxrl4lm.models.transformer import Transformer

__all__ = [
    "Cache",
    "Carry",
    "CheckpointError",
    "Convolution",
    "Head",
    "LanguagePolicy",
    "MemoryPolicy",
    "Network",
    "Perceptron",
    "Pooler",
    "Prefix",
    "RecurrentPolicy",
    "Rope",
    "Transformer",
    "TransformerConfig",
    "TransformerPolicy",
    "batch_sharding",
    "combine",
    "init_head",
    "load",
    "load_backbone",
    "load_with_head",
    "lora",
    "make_mesh",
    "match_paths",
    "new_head",
    "parameter_count",
    "partition",
    "place",
    "positions_of",
    "put_batch",
    "save",
    "save_with_head",
    "sequence_outputs",
    "shardings",
    "span_outputs",
    "token_outputs",
]
