"""Made sentences about people, and an encoder as small as they need: find the name, find the number, and others."""

import json
import pathlib
import random

import jax
import tokenizers
from tokenizers import pre_tokenizers, processors

from jaxrl4lm import models
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.models.families import read_config

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
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
VERBS = ("bought", "sold", "made", "lost", "found", "kept")
WORDS = (*FIRST, *LAST, *TENS, *ONES, *VERBS, "by", "for", ",", ".", "?", "who", "what", "how", "many")
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def make_sentence(rng: random.Random) -> list[tuple[str, str, list[str]]]:
    """Clauses (what they begin with, task, words), as "sold by Ada Turing , made for twenty nine": by and for a name, by and
    for a number."""
    clauses = []
    for mark in ("by", "for"):
        for task, first, last in (("name", FIRST, LAST), ("number", TENS, ONES)):
            words = [rng.choice(first), rng.choice(last)]
            begin = f"{rng.choice(VERBS)} {mark}"
            clauses.append((begin, task, words if rng.random() < 0.5 else words[:1]))
    rng.shuffle(clauses)
    return clauses


def make_rows(task: str, count: int, seed: int) -> list[dict]:
    """Rows of a task: `name` and `number` are spans, of which the one after "by" is meant; `long` are classes (has that name two
    words?), `tags` are tags of words: of names after "by", and of names after "for"."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        clauses = make_sentence(rng)
        text = " , ".join(f"{begin} {' '.join(words)}" for begin, _, words in clauses) + " ."
        wanted = "number" if task == "number" else "name"
        [words] = [words for begin, kind, words in clauses if kind == wanted and begin.endswith("by")]
        question, answer = "how many ?" if task == "number" else "who ?", " ".join(words)
        if task in ("name", "number"):
            answers = {"text": [answer], "answer_start": [text.index(f" by {answer}") + 4]}
            rows.append({"question": question, "context": text, "answers": answers})
        elif task == "tags":
            rows.append({"tokens": text.split(), "tags": _tag(clauses)})
        else:
            rows.append(
                {"sentence1": question, "sentence2": text, "label": "two" if len(words) == 2 else "one"}
            )
    return rows


def _tag(clauses: list[tuple[str, str, list[str]]]) -> list[str]:
    tags = []
    for begin, task, words in clauses:
        role = begin.split()[-1].upper()
        named = [f"B-{role}", f"I-{role}"][: len(words)] if task == "name" else ["O"] * len(words)
        tags += ["O", "O", *named, "O"]
    return tags


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
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, **names}
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


def modernbert(layers: int = 2, width: int = 64) -> models.TransformerConfig:
    """The configuration of a small ModernBERT, whose rotary positions are relative."""
    hf = {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "vocab_size": len(SPECIAL) + len(set(WORDS)),
    }
    hf |= {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    return read_config({**hf, "max_position_embeddings": 64, "global_attn_every_n_layers": 1})


def write_model(
    path: pathlib.Path, config: models.TransformerConfig | None = None, seed: int = 0
) -> pathlib.Path:
    """A folder of a model with random weights that reads the sentences."""
    policy = models.LanguagePolicy(config or bert())
    models.save(path, policy, jax.jit(policy.init)(jax.random.key(seed)), word_tokenizer())
    return path
