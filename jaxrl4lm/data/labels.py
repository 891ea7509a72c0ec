"""Rows with labels as token ids: an answer that stands in a context, the class of a text or of a pair, tags of words.

Texts are encoded as `transformers` does, with the special tokens that the tokenizer puts around one text or between two.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import tokenizers

from jaxrl4lm.data.corpus import check_ids
from jaxrl4lm.data.files import Row, list_columns
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.data.tokenizer import Tokenizer
from jaxrl4lm.types import InputError

Kind: TypeAlias = Literal["sequence", "token", "span"]
COLUMNS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "span": (("question", "context", "answers"),),
    "sequence": (("text", "label"), ("sentence1", "sentence2", "label"), ("sentence", "label")),
    "token": (("tokens", "tags"),),
}
"""Columns of a row of each kind: any of these."""
NO_LABEL = -1
"""In place of a label: the token has none."""
UNMARKED = (NO_LABEL, -100)
"""What rows write where there is no label: GLUE's test rows, and tokens that PyTorch's losses leave out."""


class Labelled(NamedTuple):
    """A text and what is to be said of it."""

    tokens: list[int]
    parts: list[int]
    """The part of the text, from 0, that each token belongs to."""
    targets: list[int]
    """Span: first and last token of the answer. Sequence: its label. Token: a label for each, or `NO_LABEL`."""
    places: list[tuple[int, int]]
    """Span: the characters [begin, end) of the context that each token stands for; (0, 0) outside of it."""
    text: str
    """What is labelled, to look at; of a span the context."""
    question: str = ""
    answers: tuple[str, ...] = ()
    """Span: each of them is right."""


class EncodedLabels(NamedTuple):
    """Labelled texts ready for batches."""

    examples: list[Labelled]
    dropped: dict[str, list[int]]
    """Why rows could not be used → their lines."""
    cut: int
    """How many texts lost their end to `max_length`."""


def list_labels(rows: Sequence[Row], kind: Kind) -> list[Any]:
    """The labels that occur, in order; of a span there are none. Numbers or names, not both.

    Raises:
      InputError: naming the row, if it has other columns than the kind, or a label is no class.
    """
    if kind == "span":
        return []
    column, seen = COLUMNS[kind][0][-1], set()
    for row in rows:
        _find_columns(row, kind)
        given = row.columns[column]
        if kind == "token" and not isinstance(given, list | tuple):
            raise InputError(f"{row.where}: column 'tags' holds no list: give a tag for each of the tokens")
        for label in given if kind == "token" else [given]:
            if isinstance(label, float) or not isinstance(label, int | str):
                raise InputError(
                    f"{row.where}: the label {label!r} is no class: give a whole number or a name"
                )
            seen.add(label)
    if len({type(label) for label in seen}) > 1:
        raise InputError(
            f"{rows[0].source or 'the data'}: some labels are numbers, some names: write all alike"
        )
    return sorted(seen - {*UNMARKED})


def encode_labelled(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    kind: Kind,
    labels: Sequence[Any],
    *,
    max_length: int | None = None,
    embeddings: int | None = None,
) -> EncodedLabels:
    """Rows as token ids with their labels.

    Args:
      labels: as `list_labels` gives them.
      max_length: of a row with its special tokens. A longer one loses the end of its text, of two texts that of the second; it
        is dropped if its answer is lost. None: all.
      embeddings: of the model that is to read them.
    Raises:
      InputError: naming the row, if its columns are not those of the kind.
    """
    backend = HuggingFaceTokenizer.of(tokenizer).backend
    encode = {"span": _encode_span, "sequence": _encode_sequence, "token": _encode_tags}[kind]
    examples, dropped, cut = [], {}, 0
    for row in rows:
        _find_columns(row, kind)
        made, is_cut = encode(row, backend, list(labels), max_length)
        if isinstance(made, str):
            dropped.setdefault(made, []).append(row.line)
            continue
        check_ids(made.tokens, embeddings, row.where)
        examples.append(made)
        cut += is_cut
    return EncodedLabels(examples, dropped, cut)


def _find_columns(row: Row, kind: Kind) -> tuple[str, ...]:
    for names in COLUMNS[kind]:
        if all(row.columns.get(name) is not None for name in names):
            return names
    wanted = ", or ".join(" and ".join(f"`{name}`" for name in names) for names in COLUMNS[kind])
    raise InputError(
        f"{row.where}: {list_columns(row)}, where --kind {kind} reads {wanted}: name them by --columns"
    )


_Made: TypeAlias = tuple[Labelled | str, bool]
"""What a row becomes, or why it cannot be used; and whether its text was cut."""


def _encode_span(row: Row, backend: tokenizers.Tokenizer, labels: list, most: int | None) -> _Made:
    del labels
    question, context = (_read_text(row, name) for name in ("question", "context"))
    answers = _read_answers(row)
    if not answers:
        return "no answer", False
    encoding = _encode_within(backend, [question, context], most)
    if encoding is None:
        return "its question leaves no room for the context", False
    inside = [sequence == 1 for sequence in encoding.sequence_ids]
    places = [place if own else (0, 0) for place, own in zip(encoding.offsets, inside, strict=True)]
    answers = [(text, begin) for text, begin in answers if context[begin : begin + len(text)] == text]
    if not answers:
        return "its answer does not stand where answer_start says", False
    spans = [(_find_tokens(places, begin, begin + len(text)), begin + len(text)) for text, begin in answers]
    whole = [span for span, end in spans if span is not None and places[span[-1]][1] >= end]
    if not whole:
        return "its answer lies beyond max_length", False
    span = whole[0]
    made = Labelled(
        encoding.ids,
        encoding.type_ids,
        [span[0], span[-1]],
        places,
        context,
        question,
        tuple(a for a, _ in answers),
    )
    return made, max(end for _, end in places) < len(context.rstrip())


def _encode_sequence(row: Row, backend: tokenizers.Tokenizer, labels: list, most: int | None) -> _Made:
    *names, column = _find_columns(row, "sequence")
    if row.columns[column] in UNMARKED:
        return "no label", False
    texts = [_read_text(row, name) for name in names]
    encoding = _encode_within(backend, texts, most)
    if encoding is None:
        return "its first text leaves no room for the second", False
    end = max(
        (e for (_, e), s in zip(encoding.offsets, encoding.sequence_ids, strict=True) if s == len(texts) - 1),
        default=0,
    )
    label = labels.index(row.columns[column])
    return Labelled(encoding.ids, encoding.type_ids, [label], [], " | ".join(texts)), end < len(
        texts[-1].rstrip()
    )


def _encode_tags(row: Row, backend: tokenizers.Tokenizer, labels: list, most: int | None) -> _Made:
    words, tags = row.columns["tokens"], row.columns["tags"]
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{row.where}: column 'tokens' holds no list of words: write it so")
    if len(words) != len(tags):
        raise InputError(f"{row.where}: {len(tags)} tags for {len(words)} tokens: give one for each")
    text, begin, targets = " ".join(words), 0, []
    encoding = _encode_within(backend, [text], most)
    if encoding is None or not words:
        return "no words", False
    places = [p if s == 0 else (0, 0) for p, s in zip(encoding.offsets, encoding.sequence_ids, strict=True)]
    targets = [NO_LABEL] * len(encoding.ids)
    for word, tag in zip(words, tags, strict=True):  # the first token of a word carries its tag
        if found := _find_tokens(places, begin, begin + len(word)):
            targets[found[0]] = NO_LABEL if tag in UNMARKED else labels.index(tag)
        begin += len(word) + 1
    return Labelled(encoding.ids, encoding.type_ids, targets, [], text), max(e for _, e in places) < len(text)


def _read_text(row: Row, name: str) -> str:
    if not isinstance(row.columns[name], str):
        raise InputError(f"{row.where}: column {name!r} holds no text: write it as text")
    return row.columns[name]


def _read_answers(row: Row) -> list[tuple[str, int]]:
    """Texts of the answers and where they begin, as SQuAD has them or as a list of records."""
    given = row.columns["answers"]
    try:
        if isinstance(given, dict):
            pairs = list(zip(given["text"], given["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in given]
        known = all(isinstance(text, str) and type(begin) is int for text, begin in pairs)
    except (KeyError, TypeError, ValueError):
        pairs, known = [], False
    if not known:
        raise InputError(
            f"{row.where}: column 'answers' is not of the form {{'text': [...], 'answer_start': [...]}}: write it so"
        )
    return [(text, begin) for text, begin in pairs if text]


def _encode_within(
    backend: tokenizers.Tokenizer, texts: list[str], most: int | None
) -> tokenizers.Encoding | None:
    """One text or two with their special tokens, the last cut to fit; None where nothing of it is left."""
    *before, last = texts
    while last:
        first, second = (before[0], last) if before else (last, None)
        encoding = backend.encode(first, second)  # with special tokens
        excess = 0 if most is None else len(encoding.ids) - most
        if excess <= 0:
            return encoding
        own = [p for p, s in zip(encoding.offsets, encoding.sequence_ids, strict=True) if s == len(before)]
        last = last[: own[-excess - 1][1]] if excess < len(own) else ""
    return None


def _find_tokens(places: Sequence[tuple[int, int]], begin: int, end: int) -> list[int] | None:
    """The tokens that stand for some of the characters [begin, end); None if there are none."""
    return [i for i, (b, e) in enumerate(places) if b < end and begin < e] or None
