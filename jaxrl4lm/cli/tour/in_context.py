"""Learning in the context of a prompt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl4lm import data, decoding, lm, models, training
from jaxrl4lm.cli.tour.chapter import Chapter, Findings, Table
from jaxrl4lm.cli.tour.small_model import read_metric
from jaxrl4lm.plots.panels import Line, Panel

TEXT = """
A prompt can say what is wanted by **examples**. No parameter changes: the model reads from its context which task it
is, because in its training what came before told it what would come next.

The model here has read rows such as `c>d h>i a>b`, each of which does one of three things with every letter: its
capital, its number, the letter that follows. Then it gets prompts with no example, one, two … and the answer to the
last letter is asked for. Without an example it can only guess which of the three is meant.
"""
LETTERS = "abcdefghi"
RULES = {"its capital": "ABCDEFGHI", "its number": "123456789", "the next": "bcdefghij"}
SHOTS, TEMPLATE = 4, "{input}>{output} "
ROWS, STEPS, BATCH, TESTS = 6000, 300, 64, 200


def _compute() -> Findings:
    tokenizer = data.CharacterTokenizer("".join(sorted({*LETTERS, *"".join(RULES.values()), *"> "})))
    policy = models.LanguagePolicy(
        models.TransformerConfig(tokenizer.vocab_size, layers=2, width=64, heads=4, context=32)
    )
    generator = np.random.default_rng(0)
    names = list(RULES)
    rows = ["".join(write(generator, names[i % 3], SHOTS)) for i in range(ROWS)]
    stage = training.supervised(
        policy,
        rows,
        lm.SupervisedConfig(learning_rate=3e-3, steps=STEPS, batch=BATCH),
        tokenizer=tokenizer,
    )
    run = training.fit([stage], jax.jit(policy.init)(jax.random.key(0)))
    ask = jax.jit(partial(_ask, policy))
    right = {name: [] for name in names}
    rows_of_table = []
    for shots in range(SHOTS + 1):
        for name in names:
            prompts, answers = zip(*(write(generator, name, shots) for _ in range(TESTS)), strict=True)
            ids = jnp.array([[*tokenizer.begin_ids, *tokenizer.encode(prompt)] for prompt in prompts])
            likely = np.asarray(ask(run.params, ids))
            wanted = np.array([tokenizer.encode(answer)[0] for answer in answers])
            right[name].append(likely[np.arange(TESTS), wanted].mean())
            if name == "the next" and shots < 3:
                said = tokenizer.decode([int(likely[0].argmax())])
                sure = f"{likely[0].max():.2f}"
                rows_of_table.append([f"`{prompts[0]}`", f"`{said}`", sure, f"`{answers[0]}`"])
    shots = np.arange(SHOTS + 1)
    none, one = (np.mean([right[name][k] for name in names]) for k in (0, 1))
    return Findings(
        panels=(
            Panel(
                "what examples in the prompt say",
                "examples before the question",
                "probability of the right answer",
                lines=[Line(shots, right[name], name) for name in names],
                levels=((1 / 3, "a guess among the three"),),
                y_limits=(0, 1.05),
            ),
            Panel(
                "learning to read them",
                "steps",
                "cross-entropy, nats a token",
                lines=(Line(*read_metric(run, "loss")),),
            ),
        ),
        tables=(
            Table(["prompt", "likeliest answer", "its probability", "wanted (the next)"], rows_of_table),
        ),
        remarks=(
            f"Means of {TESTS} prompts. Without an example the right answer has probability {none:.2f}, after one"
            f" {one:.2f}. What is left of the loss is the questions themselves, which nobody can guess."
        ),
    )


def write(generator: np.random.Generator, rule: str, shots: int) -> tuple[str, str]:
    """A prompt with so many examples of a rule, and its answer."""
    letters = generator.integers(len(LETTERS), size=shots + 1)
    examples = [(LETTERS[i], RULES[rule][i]) for i in letters]
    prompt = decoding.few_shot(examples[:-1], examples[-1][0], template=TEMPLATE)
    return prompt, examples[-1][1]


def _ask(policy: models.LanguagePolicy, params, ids):
    """Probabilities of the token after each prompt, `[prompts, vocabulary]`."""
    hidden = policy.hidden(params, ids, jnp.ones(ids.shape, bool))
    return jax.nn.softmax(policy.logits(params, hidden[:, -1]))


CHAPTER = Chapter(
    name="in-context",
    title="Prompts with examples",
    text=TEXT,
    functions=("decoding.few_shot", "training.supervised", "training.fit"),
    picture="Probability of the right answer against the number of examples in the prompt, three tasks; the training loss",
    compute=_compute,
    commands=("jaxrl4lm generate DIR --prompt TEXT",),
)
