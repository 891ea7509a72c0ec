"""Made sentences about people, and an encoder as small as they need: find the name, find the number, and others."""

import json
import pathlib
import random

import jax
import tokenizers
from tokenizers import pre_tokenizers, processors

from jaxrl4lm import models
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer

FIRST = (
    "Ada",
    "Alan",
    "Grace",
    "Kurt",
    "Emmy",
    "Niels",
    "Marie",
    "Paul",
    "Lise",
    "Hans",
    "Rosa",
    "Otto",
    "Nora",
)
LAST = (
    "Lovelace",
    "Turing",
    "Hopper",
    "Noether",
    "Bohr",
    "Curie",
    "Dirac",
    "Meitner",
    "Bethe",
    "Hahn",
    "Stein",
)
NUMBERS = (
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "twenty",
    "fifty",
)
THINGS = ("apples", "stones", "books", "lamps", "coins", "maps", "keys", "ships", "songs", "letters")
VERBS = ("bought", "sold", "counted", "lost", "found", "wrote", "carried", "painted")
PLACES = ("market", "harbour", "station", "library", "garden", "bridge", "museum")
TIMES = ("yesterday", "today", "once", "often", "early", "late")
OTHERS = ("in", "the", "at", "near", ",", ".", "?", "who", "how", "many")
WORDS = (*FIRST, *LAST, *NUMBERS, *THINGS, *VERBS, *PLACES, *TIMES, *OTHERS)
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def make_sentence(rng: random.Random) -> dict:
    """A sentence as words, its name, its number, and a tag for each word."""
    name = [rng.choice(FIRST), rng.choice(LAST)][: rng.choice([1, 2, 2])]
    number, thing, place = rng.choice(NUMBERS), rng.choice(THINGS), rng.choice(PLACES)
    deed = [rng.choice(VERBS), number, thing]
    where = [rng.choice(["in", "at", "near"]), "the", place]
    when = [rng.choice(TIMES)]
    words = rng.choice(
        [[*name, *deed, *where], [*when, ",", *where, ",", *name, *deed], [*where, *name, *deed, *when]]
    )
    begin = words.index(name[0])
    tags = ["O"] * len(words)
    tags[begin : begin + len(name)] = ["B-PER", "I-PER"][: len(name)]
    return {"words": [*words, "."], "name": " ".join(name), "number": number, "tags": [*tags, "O"]}


def make_rows(task: str, count: int, seed: int) -> list[dict]:
    """Rows of a task: `name` and `number` are spans, `long` classes (has the person one name or two?), `tags` tags of words."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        made = make_sentence(rng)
        text = " ".join(made["words"])
        if task in ("name", "number"):
            question = {"name": "who ?", "number": "how many ?"}[task]
            answers = {"text": [made[task]], "answer_start": [text.index(made[task])]}
            rows.append({"question": question, "context": text, "answers": answers})
        elif task == "tags":
            rows.append({"tokens": made["words"], "tags": made["tags"]})
        else:
            rows.append({"text": text, "label": "two" if " " in made["name"] else "one"})
    return rows


def write_rows(path: pathlib.Path, task: str, count: int, seed: int = 0) -> pathlib.Path:
    """A file of such rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(task, count, seed)))
    return path


def word_tokenizer() -> HuggingFaceTokenizer:
    """A token a word, between the special tokens of BERT."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    return HuggingFaceTokenizer(backend, pad_id=0, eos_id=2, begin_ids=(1,), eos_ids=(2,), config=config)


def bert(layers: int = 2, width: int = 64, **changes) -> models.TransformerConfig:
    """The configuration of a small BERT."""
    style = {
        "causal": False,
        "norm": "layer",
        "norm_placement": "sum",
        "norm_eps": 1e-12,
        "embedding_norm": True,
    }
    style |= {"token_types": 2, "rope_theta": None, "bias": True, "gated": False, "activation": "gelu"}
    sizes = {"layers": layers, "width": width, "heads": 4, "context": 64}
    vocabulary = word_tokenizer().vocab_size
    return models.TransformerConfig(vocabulary, **{**style, **sizes, "readout": "none", **changes})


def write_model(
    path: pathlib.Path, config: models.TransformerConfig | None = None, seed: int = 0
) -> pathlib.Path:
    """A folder of a model with random weights that reads the sentences."""
    policy = models.LanguagePolicy(config or bert())
    models.save(path, policy, jax.jit(policy.init)(jax.random.key(seed)), word_tokenizer())
    return path
