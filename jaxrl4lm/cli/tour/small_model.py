"""A language model that is trained in seconds, for the chapters about language."""

import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np

from jaxrl4lm import data, lm, models, training
from jaxrl4lm.types import Params

WORDS = {
    "animal": ("cat", "dog", "bird"),
    "person": ("girl", "king", "cook"),
}
ADJECTIVES, VERBS = ("small", "old", "grey", "wild"), ("sits", "sleeps", "waits")
PLACES = {
    "animal": ("on the mat", "in the sun", "by the tree"),
    "person": ("at the table", "in the house", "on the road"),
}
"""Where a sentence goes depends on who it is about: a model has to remember that over the verb."""
STEPS, BATCH, CONTEXT = 200, 32, 48


class Language(NamedTuple):
    """A model of the little language, before and after teacher forcing."""

    policy: models.LanguagePolicy
    tokenizer: data.CharacterTokenizer
    untrained: Params
    params: Params
    run: training.Run


def list_beginnings() -> list[tuple[str, str]]:
    """Everything up to the verb, and whom it is about."""
    return [
        (f"the {adjective} {word} {verb}", kind)
        for kind, words in WORDS.items()
        for adjective, word, verb in itertools.product(ADJECTIVES, words, VERBS)
    ]


def list_sentences() -> list[str]:
    """All sentences of the language."""
    return [f"{beginning} {place}." for beginning, kind in list_beginnings() for place in PLACES[kind]]


def read_metric(run: training.Run, name: str) -> tuple[list[int], list[float]]:
    """Steps that have a metric, and its mean at each."""
    points = [(record["step"], record[name]) for record in run.records if record.get(name) is not None]
    return [step for step, _ in points], [float(np.mean(value)) for _, value in points]


@functools.cache
def teach() -> Language:
    """Trains the model on nine of ten sentences; a second call gives the same."""
    sentences = [str(each) for each in np.random.default_rng(0).permutation(list_sentences())]
    tokenizer = data.CharacterTokenizer.from_texts(sentences)
    config = models.TransformerConfig.gpt2(tokenizer.vocab_size, layers=2, width=64, heads=4, context=CONTEXT)
    policy = models.LanguagePolicy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    stage = training.supervised(
        policy,
        sentences,
        lm.SupervisedConfig(learning_rate=3e-3, steps=STEPS, batch=BATCH),
        tokenizer=tokenizer,
        evaluate_every=30,
    )
    run = training.fit([stage], params)
    return Language(policy, tokenizer, params, run.params, run)
