"""Generation inside jit."""

from jaxrl4lm.decoding.draw import draw, greedy, row_uniforms
from jaxrl4lm.decoding.generate import Generation, generate

__all__ = ["Generation", "draw", "generate", "greedy", "row_uniforms"]
