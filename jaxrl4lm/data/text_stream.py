"""The text of a completion as its tokens come: never half a character, never part of a stop string."""

from collections.abc import Sequence

from jaxrl4lm.data.tokenizer import Tokenizer

HALF = "\ufffd"
"""What decoders write for bytes that are not yet a character."""


class TextStream:
    """Turns tokens into text piece by piece.

    The pieces together are what the whole completion decodes to after its prompt (words keep the space that many
    tokenizers drop at the beginning of a text), up to the first stop string. Of bytes that are no UTF-8, a tokenizer
    that falls back to bytes decodes less as a whole: one such byte makes all of its run replacement characters, those
    before it too, which had been characters. There the stream is what is meant: what it has given out, it keeps.

    >>> from jaxrl4lm.data import ByteTokenizer
    >>> tokenizer = ByteTokenizer()
    >>> stream = TextStream(tokenizer, tokenizer.encode("caf"), stops=["!"])
    >>> e, acute, *rest = tokenizer.encode("é !?")
    >>> [stream.push([e]), stream.push([acute]), stream.push(rest), stream.ended]
    ['', 'é', ' ', True]
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self._ids = list(prompt)
        self._begin, self._read = 0, len(self._ids)
        self._held = ""
        self.ended = False
        """Whether a stop string has come; nothing follows it."""

    def push(self, ids: Sequence[int] = (), *, last: bool = False) -> str:
        """The text that these tokens make certain.

        Args:
          ids: the next tokens.
          last: nothing follows: what was held back comes too.
        """
        if self.ended:
            return ""
        self._ids += [int(i) for i in ids]
        self._held += self._fresh(last)
        found = [i for i in (self._held.find(stop) for stop in self._stops) if i >= 0]
        if found:
            self.ended = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _fresh(self, last: bool) -> str:
        """What the tokens not yet read add to the text: decoded with some before them, as they depend on those."""
        before = self._tokenizer.decode(self._ids[self._begin : self._read])
        now = self._tokenizer.decode(self._ids[self._begin :])
        if len(now) <= len(before) or (now.endswith(HALF) and not last):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return now[len(before) :]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
