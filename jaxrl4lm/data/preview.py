"""An example as text, so that a person sees what a run will learn."""

from itertools import groupby

from jaxrl4lm.data.encoding import Example
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer

BEGIN, END = "⟦", "⟧"
"""Around tokens that carry loss."""


def show_example(example: Example, tokenizer: Tokenizer) -> str:
    """The text of an example, special tokens written out, with ⟦ and ⟧ around the tokens that carry loss.

    >>> from jaxrl4lm.data import ByteTokenizer, Example
    >>> show_example(Example([2, 52, 46, 53, 64, 53, 1], [False] * 5 + [True] * 2), ByteTokenizer())
    '<bos>1+2=⟦2<eos>⟧'
    """
    backend = HuggingFaceTokenizer.of(tokenizer).backend
    text, shown, end = "", "", 0
    for target, run in groupby(example.targets):
        end += len(list(run))
        # All that came before is decoded again: pieces depend on it (spaces, bytes of one character).
        whole = backend.decode(example.tokens[:end], skip_special_tokens=False)
        piece, shown = whole[len(shown) :], whole
        text += f"{BEGIN}{piece}{END}" if target else piece
    return text
