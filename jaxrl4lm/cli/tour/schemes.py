"""Decoding schemes beside each other."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import decoding
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_model import CONTEXT, list_sentences, teach
from jaxrl4lm.plots.panels import Bars, Line, Panel

TEXT = """
A distribution is not a text yet. **Greedy** decoding takes the likeliest token each time; **beam search** keeps several
beginnings, and looks for the likeliest text: by log π here, by the mean of log π over its tokens as it is usually
called. **Sampling** draws: at temperature τ from softmax(z/τ), among the k likeliest tokens (**top-k**), or among the
fewest that have probability p together (**top-p**). Who draws from the distribution itself, τ = 1, gets its mistakes as
well; who narrows it gets fewer, and says fewer different things. In reinforcement learning the texts are drawn from
what is trained, so every log-probability must be of the distribution that was drawn from.
"""
DRAWS, PROMPT = 256, "the "


def _compute() -> Findings:
    language = teach()
    policy, params, tokenizer = language.policy, language.params, language.tokenizer
    ids = jnp.array([[*tokenizer.begin_ids, *tokenizer.encode(PROMPT)]])
    mask = jnp.ones(ids.shape, bool)
    settings: dict[str, dict[str, Any]] = {
        "temperature 0.5": {"temperature": 0.5},
        "temperature 1": {},
        "temperature 1.5": {"temperature": 1.5},
        "temperature 1.5, top-k 3": {"temperature": 1.5, "truncations": (decoding.top_k(3),)},
        "temperature 1.5, top-p 0.8": {"temperature": 1.5, "truncations": (decoding.top_p(0.8),)},
    }
    common: dict[str, Any] = {
        "max_new_tokens": CONTEXT - ids.shape[1],
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
    }
    generate = jax.jit(partial(decoding.generate, policy))
    language_texts = set(list_sentences())

    def read(tokens, real) -> list[str]:
        return [
            PROMPT + tokenizer.decode(np.asarray(row)[np.asarray(keep)].tolist())
            for row, keep in zip(tokens, real, strict=True)
        ]

    greedy = generate(params, ids, mask, jax.random.key(1), decoding.Sampling(**common, temperature=None))
    beams = decoding.beam_search(policy, params, ids, mask, beams=4, length_penalty=0.0, **common)
    texts = {"greedy": read(greedy.tokens, greedy.mask), "4 beams": read(beams.tokens[0], beams.mask[0])[:1]}
    for name, setting in settings.items():
        sampling = decoding.Sampling(**common, copies=DRAWS, **setting)
        out = generate(params, ids, mask, jax.random.key(1), sampling)
        texts[name] = read(out.tokens, out.mask)
    rows, points = [], []
    for name, drawn in texts.items():
        right, different = np.mean([t in language_texts for t in drawn]), len(set(drawn))
        many = len(drawn) > 1
        rows.append([name, drawn[0], f"{100 * right:.0f} %" if many else "", str(different) if many else ""])
        if many:
            points.append((100 * right, different, name))
    return Findings(
        panels=(
            _draw_distributions(language, ids, settings),
            Panel(
                f"{DRAWS} draws each",
                "sentences of the language, %",
                "different texts",
                lines=tuple(Line([x], [y], name, "o") for x, y, name in points),
                x_limits=(-5, 105),
                y_limits=(0, DRAWS + 20),
                legend_below=True,
            ),
        ),
        tables=(Table(["scheme", "a text", "right", f"different, of {DRAWS}"], rows),),
        remarks=(
            "Truncations repair a high temperature: top-p drops what is unlikely, however many tokens are left, and"
            " top-k keeps k of them, good or not. Both give probability 0 to what they never draw."
        ),
    )


def _draw_distributions(language, ids, settings) -> Panel:
    """The distribution of the next letter in the middle of a word and at its end, under each scheme."""
    policy, tokenizer = language.policy, language.tokenizer
    logits = policy.logits(language.params, policy.hidden(language.params, ids, ids >= 0))[:, -1]
    empty = jnp.zeros((1, 1), jnp.int32)
    history = decoding.History(ids, ids >= 0, empty, empty.astype(bool), jnp.int32(0))
    top = np.argsort(-np.asarray(logits[0]))[:6]
    names = [tokenizer.decode([int(i)]) or "end" for i in top]
    groups = []
    for name, setting in settings.items():
        sampling = decoding.Sampling(1, tokenizer.eos_id, tokenizer.pad_id, **setting)
        shown = np.asarray(jax.nn.softmax(decoding.reshape_logits(logits, history, sampling)[0]))
        groups.append(Bars(names, shown[top], name))
    return Panel(
        f"the letter after {PROMPT!r}", "the six likeliest", "probability", bars=groups, legend_below=True
    )


CHAPTER = Chapter(
    name="decoding",
    title="Decoding schemes",
    text=TEXT,
    functions=(
        "decoding.generate",
        "decoding.Sampling",
        "decoding.top_k",
        "decoding.top_p",
        "decoding.beam_search",
        "decoding.reshape_logits",
    ),
    picture="The next letter's distribution under five schemes; share of right texts and number of different ones",
    compute=_compute,
    commands=("jaxrl4lm generate DIR --prompt TEXT --temperature 0.8 --top-p 0.9",),
)
