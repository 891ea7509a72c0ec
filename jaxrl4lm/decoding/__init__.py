"""Generation inside jit."""

from jaxrl4lm.decoding.beam import Beams, beam_search
from jaxrl4lm.decoding.continuous import generate_queue
from jaxrl4lm.decoding.drawing import draw, draw_row_uniforms, greedy
from jaxrl4lm.decoding.generation import Generation, generate, stream
from jaxrl4lm.decoding.processors import (
    History,
    frequency_penalty,
    logit_bias,
    min_new_tokens,
    min_p,
    repetition_penalty,
    top_k,
    top_p,
    typical,
)
from jaxrl4lm.decoding.sampling import Choice, Sampling, choose, reshape_logits
from jaxrl4lm.decoding.scoring import best_of, few_shot, score

__all__ = [
    "Beams",
    "Choice",
    "Generation",
    "History",
    "Sampling",
    "beam_search",
    "best_of",
    "choose",
    "draw",
    "draw_row_uniforms",
    "few_shot",
    "frequency_penalty",
    "generate",
    "generate_queue",
    "greedy",
    "logit_bias",
    "min_new_tokens",
    "min_p",
    "repetition_penalty",
    "reshape_logits",
    "score",
    "stream",
    "top_k",
    "top_p",
    "typical",
]
