"""A language model as a distribution of texts: teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import decoding, tasks
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_model import list_sentences, read_metric, teach
from jaxrl4lm.envs import token_tree
from jaxrl4lm.lm import exact
from jaxrl4lm.models import LanguagePolicy, TransformerConfig
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
A language model is a distribution over texts, an element of Δ(S), where S are all sequences of tokens. It says it token
by token: **π(y|x) = Πₜ π(yₜ | x, y₁ … yₜ₋₁)**. Each factor is a softmax over the vocabulary, so the product sums to 1
over all texts that end.

**Teacher forcing** shows the model the right beginning, whatever it would have said itself, and raises the
log-probability of the right next token: −Σₜ log π(yₜ | x, y₁ … yₜ₋₁), the cross-entropy. The model here reads letters,
has two layers, and learns a language of 216 sentences, a tenth of which it never sees.
"""
PREFIX = "the old dog s"


def _compute() -> Findings:
    language = teach()
    policy, tokenizer = language.policy, language.tokenizer
    losses, held = (read_metric(language.run, name) for name in ("loss", "held_out/loss"))
    logits = jax.jit(lambda params, ids: policy.logits(params, policy.hidden(params, ids, ids >= 0)))
    ids = jnp.array([[*tokenizer.begin_ids, *tokenizer.encode(PREFIX)]])
    before, after = (
        np.asarray(jax.nn.softmax(logits(params, ids)[0, -1]))
        for params in (language.untrained, language.params)
    )
    top = np.argsort(-after)[:6]
    names = [repr(tokenizer.decode([int(i)])) if i != tokenizer.eos_id else "end" for i in top]
    seen = set(list_sentences())
    texts = [
        "the old dog sleeps in the sun.",
        "the old dog sleeps in the house.",
        "the sun sleeps in the dog.",
        "dsu hte ldo.",
    ]
    rows = []
    for text in texts:
        total = say(language, text)
        rows.append(
            [
                text,
                "yes" if text in seen else "no",
                f"{total[0]:.1f}",
                f"{total[1]:.1f}",
                f"{np.exp(total[1]):.1e}",
            ]
        )
    mass, count = _sum_over_texts()
    return Findings(
        panels=(
            Panel(
                "teacher forcing",
                "steps",
                "cross-entropy, nats a letter",
                lines=(
                    Line(*losses, "sentences that are taught"),
                    Line(*held, "sentences that are not", "o"),
                ),
                levels=((float(np.log(tokenizer.vocab_size)), "any letter, equally"),),
            ),
            Panel(
                f"the next letter after {PREFIX!r}",
                y_label="probability",
                bars=(Bars(names, before[top], "before"), Bars(names, after[top], "after")),
            ),
        ),
        tables=(Table(["text", "in the language", "log π before, nats", "log π after", "π after"], rows),),
        remarks=(
            f"A model so small that all its texts can be written down: the probabilities of its {count} completions"
            f" sum to {mass:.6f}. Teacher forcing moves probability to the language: of {len(seen)} sentences that"
            f" are equally likely each would have log π = {-np.log(len(seen)):.1f}. One that is nearly right keeps"
            " some."
        ),
    )


def say(language, text: str) -> list[float]:
    """Log-probabilities of a text with its end, before and after teaching, in nats."""
    tokenizer = language.tokenizer
    ids = jnp.array([[*tokenizer.begin_ids, *tokenizer.encode(text), tokenizer.eos_id]])
    return [
        float(decoding.score(language.policy, params, ids).sum())
        for params in (language.untrained, language.params)
    ]


def _sum_over_texts() -> tuple[float, int]:
    """The probabilities of all completions of a model of few ids, summed; how many there are."""
    task = tasks.lottery(vocabulary=4, length=4)
    tree = token_tree.grow(task, task.sample(jax.random.key(0), 1))
    policy = LanguagePolicy(TransformerConfig.gpt2(4, layers=1, width=16, heads=2, context=6))
    logits = jax.jit(lambda key: exact.read_logits(policy, policy.init(key), tree))(jax.random.key(0))
    said = np.asarray(exact.log_probs(tree, logits)[0], float)
    return float(np.exp(said).sum()), len(said)


CHAPTER = Chapter(
    name="language-model",
    title="A language model is a distribution",
    text=TEXT,
    functions=(
        "training.supervised",
        "training.fit",
        "decoding.score",
        "envs.token_tree.grow",
        "lm.exact.log_probs",
    ),
    picture="Cross-entropy against steps of teacher forcing; probabilities of the next letter before and after",
    compute=_compute,
    commands=("jaxrl4lm sft --dataset FILE --model DIR",),
)
