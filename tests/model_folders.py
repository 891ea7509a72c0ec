"""Hugging Face folders of tiny models, with the combinations of tokenizer and configuration that real ones have."""

import json
from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

from jaxrl4lm import models


def byte_tokenizer(special: list[str], begin: str = "") -> tokenizers.Tokenizer:
    """The 256 bytes, then the special tokens; `begin` names those, space-separated, that are put before every text."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    if begin:
        pairs = [(token, backend.token_to_id(token)) for token in begin.split()]
        backend.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=pairs)
    return backend


def prefixing_tokenizer() -> tokenizers.Tokenizer:
    """As SentencePiece's: a space, written ▁, is put before every text; words that are known whole are one token."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"Godmrning!"]
    pieces = [*dict.fromkeys(pieces), "▁G", "mo", "mor", "ni", "nin", "ning"]
    merges = [("▁", "G"), ("m", "o"), ("mo", "r"), ("n", "i"), ("ni", "n"), ("nin", "g")]
    model = tokenizers.models.BPE(
        {p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


def make_folder(
    path: Path,
    backend: tokenizers.Tokenizer,
    config: dict | None = None,
    generation: dict | None = None,
    vocab: int | None = None,
) -> Path:
    """A model of one layer that has this tokenizer.

    Args:
      config: the contents of tokenizer_config.json. None: there is no such file.
      generation: the contents of generation_config.json. None: there is no such file.
      vocab: rows of the embedding; as many as there are tokens if not given.
    """
    size = vocab or backend.get_vocab_size()
    policy = models.LanguagePolicy(models.TransformerConfig(size, layers=1, width=16, heads=2, context=64))
    models.save(path, policy, policy.init(jax.random.key(0)))
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path
