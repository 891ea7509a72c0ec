"""Ids, loss masks and packed rows are those of TRL's own preparation, for every type of data and kind of tokenizer.

Where TRL differs from what a run needs (a doubled begin or end token, a loss mask that is not asked for), a test of
its own says so.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

from jaxrl4lm import data
from jaxrl4lm.data.encoding import CUT
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from tests.model_folders import byte_tokenizer, prefixing_tokenizer
from tests.selection import slow_but

datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
pytest.importorskip("jinja2")

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{%- else %}{{ m.content }}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ 'think' if enable_thinking }}"
)
WORDS = "the sky is blue and the sea is green, été, ab bc abc, 1+1=2; long longer longest"


def merging_tokenizer():
    """Byte-level BPE that has merged words, spaces included, so that tokens differ at boundaries."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator([WORDS] * 3, trainer)
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return backend


def wordpiece_tokenizer():
    """Lower case, words from pieces, a begin token; its end token is written as a word is."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>+=,;"))
    pieces = [
        "[UNK]",
        "<s>",
        "</s>",
        *letters,
        *(f"##{c}" for c in letters),
        "the",
        "sky",
        "##ue",
        "long",
        "##er",
    ]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


KINDS = {
    "byte-level": merging_tokenizer,
    "prefix-space": prefixing_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "no begin": lambda: byte_tokenizer(["</s>"]),
}


class Both(SimpleNamespace):
    """The same tokenizer as ours and as theirs."""

    def __init__(self, folder, backend, template=TEMPLATE):
        backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "chat_template": template,
        }
        if backend.token_to_id("<s>") is not None:
            config["bos_token"] = "<s>"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ours = HuggingFaceTokenizer.load(folder)
        super().__init__(ours=ours, theirs=transformers.PreTrainedTokenizerFast.from_pretrained(folder))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()
    datasets.disable_caching()
    yield
    datasets.enable_caching()


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    return Both(tmp_path_factory.mktemp("tokenizer"), KINDS[request.param]())


def prepare_as(trainer, rows, tokenizer, options, **attributes):
    """What a trainer of TRL makes of rows, without a model."""
    shared = {"dataset_num_proc": None, "truncation_mode": "keep_start", "per_device_train_batch_size": 8}
    arguments = (SimpleNamespace(**shared | options), *([False, None] if trainer is trl.SFTTrainer else []))
    stub = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, **attributes)
    rows = datasets.Dataset.from_list(rows)
    return trainer._prepare_dataset(stub, rows, tokenizer, *arguments, "test")


def prepare(rows, tokenizer, *, completion_only=None, max_length=None, assistant_only=False):
    """Ids and loss masks as TRL's SFT trainer makes them; the first label is never used by its loss."""
    if completion_only is None:
        completion_only = "prompt" in rows[0] and "completion" in rows[0]
    options = {"dataset_text_field": "text", "shuffle_dataset": False}
    options |= {"max_length": max_length, "assistant_only_loss": assistant_only}
    made = prepare_as(trl.SFTTrainer, rows, tokenizer, options, completion_only_loss=completion_only)
    pairs = [(row["input_ids"], [False, *(label != -100 for label in row["labels"][1:])]) for row in made]
    return [(ids, mask) for ids, mask in pairs if any(mask)]


def encode(rows, tokenizer, **options):
    return data.encode([data.Row(i, row, "f") for i, row in enumerate(rows, start=1)], tokenizer, **options)


def says(*contents, first="user"):
    speakers = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": speakers[i % 2], "content": content} for i, content in enumerate(contents)]


PAIRS = [
    ("The sky", " is blue"),
    ("the sky i", "s blue"),  # within a token
    ("ab", "bc</s>"),
    ("", "1+1=2"),
    ("the sea ", "is green"),
    ("été — ", "日本 👍🏽"),
    ("1+1=", ""),
    ("2</s>", ""),
    ("God mo", "r"),  # two tokens of the prefixing tokenizer, and one of both
    ("long " * 12, "end"),
    ("short", " longest" * 12),
    ("</s>the", "</s> sky"),
]
TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
ROWS = {
    "text": [{"text": prompt + completion} for prompt, completion in PAIRS],
    "messages": [
        {"messages": says(*(x for pair in PAIRS[i : i + 2] for x in pair))} for i in range(len(PAIRS) - 1)
    ]
    + [{"messages": says("alone")}],
    "strings": [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS],
    "chats": [
        {"prompt": says(prompt), "completion": says(completion, first="assistant")}
        for prompt, completion in PAIRS
    ],
    "tools": [
        {
            "prompt": [{"role": "system", "content": "s"}, *says("a", "b", "c")],
            "completion": says("d", "e", "f", first="assistant"),
            "tools": json.dumps(tools),
            "chat_template_kwargs": {"enable_thinking": thinks},
        }
        for tools in ([TOOL], [])
        for thinks in (True, False)
    ],
    "tokens": [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]},
        {"input_ids": [5] * 30, "labels": [5] * 30},
    ],
}


@pytest.mark.parametrize("max_length", [None, 16], ids=["whole", "cut"])
@pytest.mark.parametrize("kind", slow_but(ROWS, len(ROWS) // 3))
def test_documents_are_those_of_trl(both, kind, max_length):
    theirs = prepare(ROWS[kind], both.theirs, max_length=max_length)
    ours = encode(ROWS[kind], both.ours, max_length=max_length)
    assert [tuple(example) for example in ours.examples] == theirs
    assert len(theirs) + sum(map(len, ours.dropped.values())) == len(ROWS[kind])
    whole = [len(ids) for ids, _ in prepare(ROWS[kind], both.theirs)]
    assert ours.cut == sum(n > (max_length or n) for n in whole) - len(ours.dropped.get(CUT, []))


@pytest.mark.parametrize("kind", slow_but(["messages", "chats", "tools"], 1))
def test_what_the_assistant_says_is_what_trl_finds(both, kind):
    """In conversations where it says something; with completions, where both masks say so."""
    rows = [row for row in ROWS[kind] if kind != "messages" or len(row["messages"]) > 1]
    for only in (True, False) if kind != "messages" else (None,):
        options = {"assistant_only": True, "completion_only": only}
        ours = encode(rows, both.ours, **options).examples
        assert [tuple(example) for example in ours] == prepare(rows, both.theirs, **options)
        assert any(not all(targets[1:]) for _, targets in ours)


def test_loss_on_prompts_and_masks_of_ones_own(both):
    rows = ROWS["strings"]
    ours = encode(rows, both.ours, completion_only=False).examples
    assert [tuple(example) for example in ours] == prepare(rows, both.theirs, completion_only=False)
    masks = {"completion_mask": [0, 0, 1, 1, 1], "assistant_masks": [1, 1, 1, 0, 1]}
    for names in ([], ["completion_mask"], ["assistant_masks"], list(masks)):
        rows = [{"input_ids": [3, 4, 5, 6, 7], **{name: masks[name] for name in names}}]
        ours = encode(rows, both.ours).examples
        assert [tuple(example) for example in ours] == prepare(rows, both.theirs, completion_only=True)
        unmasked = encode(rows, both.ours, completion_only=False).examples
        # TRL leaves out a column `completion_mask` unless it is told: a mask that is there is meant.
        assert [tuple(example) for example in unmasked] == prepare(rows, both.theirs)


def test_where_trl_doubles_what_begins_and_ends_a_text(tmp_path):
    """A begin token in the text, an end token before a space, one that the post-processor adds: ours come once."""
    backend = byte_tokenizer(["<s>", "</s>"], "<s>")
    both = Both(tmp_path, backend)
    begin, end = both.ours.begin_ids[0], both.ours.eos_id
    [(ours, _)] = encode([{"text": "<s>a"}], both.ours).examples
    assert [begin, *ours] == prepare([{"text": "<s>a"}], both.theirs)[0][0]
    pair = [("<s>", begin), ("</s>", end)]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=pair)
    both = Both(tmp_path, backend)
    [(ours, _)] = encode([{"text": "a"}], both.ours).examples
    assert [*ours, end] == prepare([{"text": "a"}], both.theirs)[0][0]
    both = Both(tmp_path, wordpiece_tokenizer())
    [(ours, _)] = encode([{"text": "a</s> "}], both.ours).examples
    assert [*ours, both.ours.eos_id] == prepare([{"text": "a</s> "}], both.theirs)[0][0]


OTHERS = [" is red", "sea", "x", "2", "blue", "本", "2", "3", "x", "e", " long", " sea"]


def test_implicit_prompts_are_those_of_trl():
    """But where one text begins the other: TRL then takes the last character from both."""
    whole = [says("q", "a", "r", "b"), says("q", "a", "r", "c")], [says("q", "a"), says("q", "a", "r", "b")]
    texts = [(prompt + a, prompt + b) for (prompt, a), b in zip(PAIRS, OTHERS, strict=True)]
    rows = [{"chosen": a, "rejected": b} for a, b in (*texts, *whole)]
    for row in rows:
        _, [ours] = data.recognize([data.Row(1, row)])
        theirs = trl.extract_prompt(row)
        shorter = min(row.values(), key=len)
        if isinstance(shorter, str) and all(text.startswith(shorter) for text in row.values()):
            theirs = {"prompt": shorter} | {name: text[len(shorter) :] for name, text in row.items()}
        assert ours.columns == theirs


@pytest.mark.parametrize("max_length", [None, 12], ids=["whole", "cut"])
@pytest.mark.parametrize("chats", slow_but([False, True], [True]), ids=["strings", "chats"])
def test_preferences_are_those_of_trl(both, chats, max_length):
    rows = [
        {"prompt": prompt, "chosen": completion, "rejected": other}
        for (prompt, completion), other in zip(PAIRS, OTHERS, strict=True)
    ]
    if chats:
        rows = [
            {"prompt": says(x["prompt"])} | {k: says(x[k], first="assistant") for k in ("chosen", "rejected")}
            for x in rows
        ]
    numbered = [data.Row(i, row) for i, row in enumerate(rows, start=1)]
    theirs = prepare_as(trl.DPOTrainer, rows, both.theirs, {"max_length": max_length})
    ours = data.encode_pairs(numbered, both.ours, max_length=max_length)
    expected = [tuple(row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")) for row in theirs]
    cut = [(p, *(x[: max_length and max_length - len(p)] for x in rest)) for p, *rest in expected]
    assert [pair[:3] for pair in ours.examples] == cut
    assert ours.cut == sum(a != b for a, b in zip(expected, cut, strict=True))
    assert sum(map(len, ours.dropped.values())) == len(rows) - len(expected)
    kto = prepare_as(trl.KTOTrainer, rows, both.theirs, {"max_length": max_length}, calculate_KL=False)
    judged = data.encode_judged(numbered, both.ours, max_length=max_length)
    assert [(x.prompt, x.completion, x.label) for x in judged.examples] == [
        (x["prompt_ids"], x["completion_ids"][: max_length and max_length - len(x["prompt_ids"])], x["label"])
        for x in kto
    ]


@pytest.mark.parametrize("strategy", slow_but(["bfd", "bfd_split", "wrapped"], 1))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=40), length=st.integers(1, 12))
def test_packed_rows_are_those_of_trl(strategy, lengths, length):
    if not sum(lengths):
        lengths = [1]
    ids = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    examples = [data.Example(row.tolist(), [True] * len(row)) for row in ids]
    theirs = trl.pack_dataset(
        datasets.Dataset.from_dict({"input_ids": [example.tokens for example in examples]}), length, strategy
    )
    ours = data.pack(examples, length, -1, strategy)
    assert [row[row >= 0].tolist() for row in ours.tokens] == theirs["input_ids"]
    assert ((ours.segments > 0) == (ours.tokens >= 0)).all()
    if strategy != "wrapped":  # of which TRL does not say what stands together
        sizes = [np.unique(row[row > 0], return_counts=True)[1].tolist() for row in ours.segments]
        assert sizes == theirs["seq_lengths"]
