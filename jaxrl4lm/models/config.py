"""Sizes and style of a transformer: one record that every family of models is written in."""

import math
import numbers
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Rope:
    """Rotary positions, and how they stretch beyond the context that they were trained on.

    Reference: Su et al. 2021, arXiv:2104.09864.
    """

    theta: float = 10_000.0
    """Base of the frequencies."""
    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    """By how much the context is stretched."""
    original_context: int = 8192
    """Context before stretching (llama3, yarn, longrope)."""
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    """Llama 3: frequencies of fewer turns within the original context than the low one are divided by the factor, those of
    more than the high one are kept; between them it is a mixture."""
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    """YaRN: the same two limits."""
    attention_factor: float | None = None
    """YaRN, LongRoPE: scale of cosines and sines. None: 0.1 log(factor) + 1 and
    √(1 + log(factor) / log(original context))."""
    truncate: bool = True
    """YaRN: limits are rounded to whole channels."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """LongRoPE: what each frequency is divided by, in texts within the original context and in longer ones."""

    def check(self, pairs: int) -> None:
        """Raises ValueError if a field is out of range, or LongRoPE's factors are not one for each pair of channels."""
        if not (0 < self.theta < math.inf and 0 < self.factor < math.inf):
            raise ValueError(
                f"rotary positions need a positive theta and factor, not {self.theta} and {self.factor}"
            )
        if not self.original_context > 0:
            raise ValueError(f"the original context of a rope must be positive, not {self.original_context}")
        if self.kind == "llama3" and not self.low_frequency < self.high_frequency:
            raise ValueError(
                f"a rope's low frequency must be below the high one, not {self.low_frequency} and {self.high_frequency}"
            )
        if self.kind == "longrope" and {len(self.short_factors), len(self.long_factors)} != {pairs}:
            raise ValueError(
                f"longrope has {len(self.short_factors)} short and {len(self.long_factors)} long factors: "
                f"give one a pair of channels, {pairs}"
            )

    @property
    def amplitude(self) -> float:
        """Scale of cosines and sines."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if self.kind == "yarn":
            return 0.1 * math.log(self.factor) + 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))

    def frequencies(self, channels: int, long: bool = False) -> np.ndarray:
        """Radians a position, float32 `[channels / 2]`; `long` is for texts beyond the original context (LongRoPE).

        Reference: linear: Chen et al. 2023, arXiv:2306.15595; yarn: Peng et al. 2023, arXiv:2309.00071, eq. 23;
          llama3: Grattafiori et al. 2024, arXiv:2407.21783, and the published reference code; longrope: Ding
          et al. 2024, arXiv:2402.13753.
        """
        plain = self.theta ** (-np.arange(0, channels, 2, dtype=np.float64) / channels)
        if self.kind == "longrope":
            return (plain / np.array(self.long_factors if long else self.short_factors)).astype(np.float32)
        turns = self.original_context * plain / (2 * math.pi)
        if self.kind == "linear":
            kept = np.zeros_like(plain)
        elif self.kind == "llama3":
            kept = np.clip((turns - self.low_frequency) / (self.high_frequency - self.low_frequency), 0, 1)
        elif self.kind == "yarn":
            kept = 1 - self._yarn_ramp(channels)
        else:
            kept = np.ones_like(plain)
        return (plain * kept + plain / self.factor * (1 - kept)).astype(np.float32)

    def _yarn_ramp(self, channels: int) -> np.ndarray:
        """0 for channels that turn more than `beta_fast` times in the original context, 1 for fewer than `beta_slow` times."""

        def channel(turns: float) -> float:
            return (
                channels
                * math.log(self.original_context / (turns * 2 * math.pi))
                / (2 * math.log(self.theta))
            )

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, channels - 1)
        return np.clip((np.arange(channels // 2) - low) / ((high - low) or 1e-3), 0, 1)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and style of a transformer. The defaults are Llama's style; `TransformerConfig.gpt2` gives GPT-2's."""

    vocab_size: int
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None
    """Key-value heads; each is shared by heads / kv_heads query heads. None: as many as heads."""
    head_dim: int | None = None
    """Channels of a head. None: width / heads."""
    mlp_width: int | None = None
    """Width between the layers of the MLP. None: 4 x width."""
    context: int = 1024
    """Longest sequence; the size of the table where positions are learned."""
    causal: bool = True
    """Whether a token reads only what stands before it. False: an encoder, whose tokens read each other on both sides."""
    position_offset: int = 0
    """Rows of the table of learned positions before that of the first token (RoBERTa)."""
    token_types: int = 0
    """Parts of a text, as a question and its context, whose tokens are told apart by an embedding each (BERT)."""
    embedding_norm: bool = False
    """Whether embeddings are normalised. The first block does not normalise them again."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    """Whether layer norms have biases."""
    norm_offset: float = 0.0
    """Added to the stored scale of RMS norms; 1 for Gemma, which stores the scale minus 1."""
    norm_placement: Literal["before", "after", "both", "sum"] = "before"
    """What of attention and MLP is normalised: the input (Llama), the output (OLMo 2), both (Gemma 2), or the sum of input
    and output (BERT)."""
    parallel: bool = False
    """Whether attention and MLP read the same input (GPT-NeoX). If not, the MLP reads the result of attention."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMS norm of queries and keys: over the channels of each head (Qwen3), or over all heads together (OLMo 2)."""
    rope_theta: float | None = 10_000.0
    """Base of the rotary frequencies. None: positions are a learned table."""
    ropes: tuple[Rope | None, ...] | None = None
    """Rotary positions of each layer; None for a layer without positions. None for all: `Rope(rope_theta)` in each."""
    rope_dim: int | None = None
    """How many channels of a head rotate; they are the first ones. None: all."""
    windows: tuple[int | None, ...] | None = None
    """Sliding window of each layer: how many tokens a token reads, itself included. None: all before it. In an encoder as
    many on its other side."""
    bias: bool = False
    """Whether dense layers of the blocks have biases. The three below override it where they are not None."""
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    gated: bool = True
    """Whether the MLP multiplies its activation by a second projection (SwiGLU)."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    attention_scale: float | None = None
    """Multiplies query-key products. None: 1 / √head_dim."""
    attention_softcap: float | None = None
    """c: attention scores become c tanh(score / c)."""
    logit_softcap: float | None = None
    """The same for logits."""
    embedding_scale: float = 1.0
    """Multiplies embeddings (Gemma: √width)."""
    tied: bool = True
    """Whether the unembedding is the embedding, transposed."""
    readout: Literal["linear", "transformed", "none"] = "linear"
    """How hidden states become logits: by the unembedding; by a dense layer, the activation, a norm, and an unembedding with
    a bias (masked language models); or not at all."""
    dtype: str = "float32"
    """Of matrix products. Statistics (softmax, norms, log-probabilities) are always float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again: nothing, every block, or all of a block but its dense products."""
    scan: bool = False
    """Whether layers run as one loop over whole sequences: compile time and memory then do not grow with depth."""
    family: str | None = field(default=None, compare=False)
    """The Hugging Face `model_type` that `save` writes. None: the first that has this configuration."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "layers",
            "width",
            "heads",
            "num_kv_heads",
            "channels",
            "hidden",
            "context",
        ):
            size = getattr(self, name)
            if not isinstance(size, numbers.Integral) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
        if not isinstance(self.norm_eps, numbers.Real) or not 0 <= self.norm_eps < math.inf:
            raise ValueError(f"norm_eps must be a number of at least 0, not {self.norm_eps!r}")
        if self.width % self.heads and self.head_dim is None:
            raise ValueError(f"width {self.width} does not divide into heads {self.heads}: choose a multiple")
        if self.heads % self.num_kv_heads:
            raise ValueError(
                f"heads {self.heads} does not divide into kv_heads {self.kv_heads}: choose a divisor"
            )
        if self.rope_theta is not None and self.rotated % 2:
            raise ValueError(
                f"rotary positions need an even head_dim, not {self.rotated}: change width or heads"
            )
        if self.scan and self.norm_placement == "before" and self.embedding_norm:
            raise ValueError("scan needs layers that are alike, here the first lacks a norm: set it to False")
        for rope in filter(None, self.layer_ropes):
            rope.check(self.rotated // 2)
        for window in filter(lambda w: w is not None, self.layer_windows):
            if not isinstance(window, numbers.Integral) or window < 1:
                raise ValueError(f"a window must be a whole number of at least 1, not {window!r}")
        for name in ("ropes", "windows"):
            given = getattr(self, name)
            if given is not None and len(given) != self.layers:
                raise ValueError(
                    f"{name} has {len(given)} entries for {self.layers} layers: give one a layer"
                )

    @classmethod
    def gpt2(cls, vocab_size: int, **sizes) -> "TransformerConfig":
        """GPT-2's style: learned positions, layer norm, biases, GELU (tanh), tied embeddings."""
        style = {"norm": "layer", "rope_theta": None, "bias": True, "gated": False, "activation": "gelu_tanh"}
        return cls(vocab_size, **{**style, **sizes})

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def channels(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def rotated(self) -> int:
        return self.channels if self.rope_dim is None else self.rope_dim

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width

    @property
    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """Rotary positions of every layer."""
        if self.rope_theta is None:
            return (None,) * self.layers
        return self.ropes or (Rope(self.rope_theta),) * self.layers

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """Sliding window of every layer."""
        return self.windows or (None,) * self.layers
