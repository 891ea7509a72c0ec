"""Completions as text, printed while their tokens come."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from jaxrl4lm.data.chats import render_messages
from jaxrl4lm.data.corpus import PromptSet, bucket, check_ids, pad
from jaxrl4lm.data.files import Message
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.text_stream import TextStream
from jaxrl4lm.decoding import Sampling, stream
from jaxrl4lm.models import LanguagePolicy
from jaxrl4lm.types import InputError, Key, Params

AT_ONCE = 32
CHUNK = 4
"""Tokens between two looks at what has come."""


class Report:
    """How many tokens came, and how fast, while any were being made."""

    def __init__(self):
        self._since = time.monotonic()
        self._seconds = self._first = 0.0
        self._tokens = self._later = 0

    def resume(self) -> None:
        """Leaves out the time since the last tokens came: a user was thinking."""
        if self._tokens:
            self._since = time.monotonic()

    def add(self, tokens: int) -> None:
        """Counts tokens that have just come."""
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._tokens:
            self._later += tokens
        else:
            self._first = self._seconds
        self._tokens += tokens

    def __str__(self) -> str:
        if not self._tokens:
            return ""
        text = f"{self._tokens} tokens in {self._seconds:.1f} s, the first after {self._first:.1f} s"
        rate = self._later / max(self._seconds - self._first, 1e-9)
        rate = f", then {rate:.0f} tokens/s" if self._later else ""
        return f"{text} (compilation included){rate}\n"


@dataclass(frozen=True)
class Completer:
    """A model and how it is sampled."""

    policy: LanguagePolicy
    params: Params
    tokenizer: HuggingFaceTokenizer
    sampling: Sampling
    stops: tuple[str, ...]
    key: Key
    report: Report

    @property
    def longest(self) -> int:
        """The most tokens that a prompt may have."""
        return self.policy.config.context - self.sampling.length

    def pieces(
        self, prompts: Sequence[list[int]], size: int, first: int = 0
    ) -> Iterator[tuple[int, str, bool]]:
        """Pieces of text as they come: the row's number, its next piece, and whether it is the last.

        Args:
          prompts: ids; the rows are the copies of the first, of the second ...
          size: prompts of a batch; fewer are filled up, to keep the shape.
          first: number of the first prompt, on which the draws depend.
        """
        self.report.resume()
        filled = [*prompts, *[prompts[-1]] * (size - len(prompts))]
        width = min(bucket(max(map(len, filled))), self.longest)
        tokens, mask = map(jnp.asarray, pad(filled, width, self.tokenizer.pad_id, left=True))
        copies = self.sampling.copies
        texts = [TextStream(self.tokenizer, ids, self.stops) for ids in prompts for _ in range(copies)]
        unfinished = dict.fromkeys(range(len(texts)))
        chunks = stream(
            self.policy,
            self.params,
            tokens,
            mask,
            self.key,
            self.sampling,
            row_offset=first * copies,
            chunk=CHUNK,
        )
        for new, real in chunks:
            self.report.add(int(real[list(unfinished)].sum()))
            for row in list(unfinished):
                ids = [i for i in new[row][real[row]].tolist() if i not in self.sampling.eos_ids]
                last = len(ids) < new.shape[1]
                text = texts[row].push(ids, last=last)
                if last or texts[row].ended:
                    del unfinished[row]
                yield row, text, row not in unfinished
            if not unfinished:
                return
        for row in unfinished:
            yield row, texts[row].push(last=True), True


def print_completions(completer: Completer, prompts: PromptSet, *, as_json: bool, echo: bool) -> None:
    """Prints every completion in order: the one whose turn it is as it comes, those behind it when it has ended.

    Args:
      as_json: one JSON object a completion, when it has ended, with the prompt as it was given.
      echo: the text of the prompt stands before its completion.
    """
    size, copies = min(AT_ONCE, len(prompts.ids)), completer.sampling.copies
    for first in range(0, len(prompts.ids), size):
        batch = prompts.ids[first : first + size]
        said, ended, turn, shown = [""] * (len(batch) * copies), set(), 0, 0
        for row, text, last in completer.pieces(batch, size, first):
            said[row] += text
            ended |= {row} if last else set()
            while turn < len(said):
                number = first + turn // copies
                if not as_json:
                    begin = prompts.texts[number] if echo and not shown else ""
                    print(f"{begin}{said[turn][max(shown - 1, 0) :]}", end="", flush=True)
                    shown = 1 + len(said[turn])
                if turn not in ended:
                    break
                record = {"prompt": prompts.given[number], "completion": said[turn]}
                print(json.dumps(record, ensure_ascii=False) if as_json else "", flush=True)
                turn, shown = turn + 1, 0


def converse(completer: Completer, messages: list[Message]) -> None:
    """A conversation: a message a line of standard input, the answer to each on standard output.

    Raises:
      InputError: if the conversation outgrows the model's context, or has a token that the model does not.
    """
    # Before the first question is asked.
    render_messages(completer.tokenizer, [*messages, {"role": "user", "content": "?"}], "--chat")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            continue
        messages = [*messages, {"role": "user", "content": line.strip()}]
        ids = completer.tokenizer.encode(render_messages(completer.tokenizer, messages, "--chat"))
        check_ids(ids, completer.policy.config.vocab_size, "--chat")
        if len(ids) > completer.longest:
            raise InputError(
                f"the conversation has {len(ids)} tokens, of which the model's context leaves {completer.longest} "
                "beside an answer: begin a new one, or lower --max-new-tokens"
            )
        answer = ""
        for _, text, _ in completer.pieces([ids], 1, first=len(messages)):
            print(text, end="", flush=True)
            answer += text
        print(flush=True)
        messages = [*messages, {"role": "assistant", "content": answer}]
