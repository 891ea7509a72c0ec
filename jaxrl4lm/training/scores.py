"""Scores of what a task head says, on the host: of answers as SQuAD counts them, of classes, of tags.

References: Rajpurkar et al. 2016, arXiv:1606.05250 (exact match and F1 of answers); Tjong Kim Sang & De Meulder 2003,
arXiv:cs/0306050 (F1 of entities).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np


def score_answers(said: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """`f1` (of words) and `exact_match` of answers, each against the best of those that are right."""
    pairs = list(zip(said, right, strict=True))
    f1 = np.mean([max(_overlap(answer, each) for each in known) for answer, known in pairs])
    exact = np.mean([any(_plain(answer) == _plain(each) for each in known) for answer, known in pairs])
    return {"f1": float(f1), "exact_match": float(exact)}


def _plain(text: str) -> str:
    """Without case, punctuation, articles and further spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _overlap(said: str, right: str) -> float:
    a, b = _plain(said).split(), _plain(right).split()
    if not a or not b:
        return float(a == b)
    return _f1((Counter(a) & Counter(b)).total(), len(a), len(b))


def _f1(common: int, said: int, right: int) -> float:
    """2 common / (said + right): the harmonic mean of precision and recall. 0 where there is nothing."""
    return 2 * common / (said + right) if common else 0.0


def score_classes(said: Sequence[int], right: Sequence[int], count: int) -> dict[str, float]:
    """`accuracy`, and the mean `f1` of the classes that occur."""
    a, b = np.asarray(said), np.asarray(right)
    each = [
        _f1(int(((a == c) & (b == c)).sum()), int((a == c).sum()), int((b == c).sum()))
        for c in range(count)
        if ((a == c) | (b == c)).any()
    ]
    return {"accuracy": float((a == b).mean()), "f1": float(np.mean(each))}


def score_tags(
    said: Sequence[Sequence[int]], right: Sequence[Sequence[int]], labels: Sequence[object]
) -> dict[str, float]:
    """`accuracy` of tags; and `f1` of entities where tags are called B-, I- and O, else the mean F1 of the tags."""
    flat_said, flat_right = ([tag for row in rows for tag in row] for rows in (said, right))
    scores = score_classes(flat_said, flat_right, len(labels))
    names = [str(label) for label in labels]
    if not any(name.startswith("B-") for name in names):
        return scores
    pairs = [
        (find_entities([names[i] for i in a]), find_entities([names[i] for i in b]))
        for a, b in zip(said, right, strict=True)
    ]
    common = sum(len(a & b) for a, b in pairs)
    return {**scores, "f1": _f1(common, sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs))}


def find_entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities (first word, word after the last, kind) of tags such as B-PER, I-PER and O. One that begins with I- counts.

    >>> sorted(find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC')]
    """
    found, begin, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, named = tag.partition("-")
        if kind and (mark != "I" or named != kind):
            found.add((begin, i, kind))
            kind = ""
        if named and not kind:
            begin, kind = i, named
    return found
