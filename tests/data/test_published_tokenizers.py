"""Special tokens as published models lay them out: transformers says which ids a text has."""

import pytest
import tokenizers

from jaxrl4lm.data import CharacterTokenizer
from jaxrl4lm.data.corpus import encode_prompt, encode_prompts
from jaxrl4lm.data.encoding import encode
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.types import InputError
from tests.model_folders import byte_tokenizer, make_folder, prefixing_tokenizer

transformers = pytest.importorskip("transformers")


def limited_tokenizer():
    """As some programs save it: with the lengths of their batches."""
    backend = byte_tokenizer(["<bos>", "<eos>"], "<bos>")
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    return backend


LLAMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
QWEN = {"eos_token": "<im_end>", "pad_token": "<eot>"}
FOLDERS = {
    "no padding": (lambda: byte_tokenizer(["<bos>", "<eos>"], "<bos>"), None, LLAMA),
    "padding ends": (
        lambda: byte_tokenizer(["<eot>", "<im_start>", "<im_end>"]),
        {"eos_token_id": [258, 256]},
        QWEN,
    ),
    "one token for all": (
        lambda: byte_tokenizer(["<eot>"]),
        None,
        dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<eot>"),
    ),
    "begins with two": (lambda: byte_tokenizer(["<bos>", "<lang>", "<eos>"], "<bos> <lang>"), None, LLAMA),
    "no configuration": (lambda: byte_tokenizer(["<bos>", "<eos>"], "<bos>"), {"eos_token_id": 257}, None),
    "cuts and pads": (limited_tokenizer, None, LLAMA),
    "prefixed": (prefixing_tokenizer, None, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
TEXTS = [
    "hi",
    "Good morning!",
    " é\n",
    "<eos>",
    "<im_start>user\nhi<im_end>\n<im_start>",
    "<eot>",
    "a<eot>b<pad>",
]


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    make, generation, config = FOLDERS[request.param]
    return make_folder(tmp_path_factory.mktemp("model"), make(), config, generation)


def prompts_of(tokenizer, *texts, context=60):
    rows = [Row(i, {"prompt": text}) for i, text in enumerate(texts, start=1)]
    return encode_prompts(rows, "prompt", tokenizer, "file.jsonl", 4, context)


def test_prompts_have_the_ids_of_transformers(folder):
    ours = HuggingFaceTokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    prompts = prompts_of(ours, *TEXTS)
    assert prompts.ids == [theirs(text).input_ids for text in TEXTS]
    tokens, mask = prompts.batch(range(len(TEXTS)), ours.pad_id)
    assert [row[real].tolist() for row, real in zip(tokens, mask, strict=True)] == prompts.ids


def test_what_begins_a_text_comes_once(folder):
    tokenizer = HuggingFaceTokenizer.load(folder)
    begin = [str(tokenizer.backend.id_to_token(i)) for i in tokenizer.begin_ids]
    for count in range(len(begin) + 1):
        assert encode_prompt(tokenizer, "".join(begin[:count]) + "hi") == encode_prompt(tokenizer, "hi")


def encode_pairs(tokenizer, *pairs, **options):
    rows = [Row(i, {"prompt": p, "completion": c}) for i, (p, c) in enumerate(pairs, start=1)]
    return encode(rows, tokenizer, **options).examples


def test_documents_are_one_text_and_end_once(folder):
    tokenizer = HuggingFaceTokenizer.load(folder)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    end = str(tokenizer.backend.id_to_token(tokenizer.eos_ids[-1]))
    pairs = [("Good mor", "ning"), ("", "Good morning"), ("Good morning", ""), ("Good mor", "ning" + end)]
    examples = encode_pairs(tokenizer, *pairs)
    for (tokens, targets), (prompt, completion) in zip(examples, pairs, strict=True):
        text = theirs(prompt + completion).input_ids
        ended = completion.endswith(end)
        assert tokens == text + [tokenizer.eos_id] * (not ended)
        begun = theirs(prompt).input_ids
        assert begun == text[: len(begun)]
        assert targets == [i >= max(len(begun), 1) for i in range(len(tokens))]
    assert tokenizer.decode(examples[0].tokens) == "Good morning"
    assert examples[0].targets[examples[0].tokens.index(tokenizer.eos_id)]


def test_a_completion_begins_with_the_token_that_it_shares_with_its_prompt():
    backend = prefixing_tokenizer()
    tokenizer = HuggingFaceTokenizer(backend, pad_id=0, eos_id=2, begin_ids=(1,), eos_ids=(2,))
    ((tokens, targets),) = encode_pairs(tokenizer, ("mo", "rning"))
    assert [backend.id_to_token(i) for i in tokens] == ["<s>", "▁", "mor", "ning", "</s>"]
    assert targets == [False, False, True, True, True]


def word_tokenizer():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[UNK]", "</s>"])
    return HuggingFaceTokenizer(backend, pad_id=2, eos_id=1)


@pytest.mark.parametrize(
    "tokenizer, known, unknown",
    [
        (HuggingFaceTokenizer.of(CharacterTokenizer("abc")), ["abc", "<pad>a", "<eos>"], ["abx", "<pad>x"]),
        (word_tokenizer(), ["a a", "a [UNK] a", "</s>"], ["a b a", "[UNK] b"]),
    ],
    ids=["characters", "words"],
)
def test_the_unknown_is_what_the_unknown_token_stands_for(tokenizer, known, unknown):
    assert prompts_of(tokenizer, *known).texts == known
    for text in unknown:
        with pytest.raises(InputError, match=r"line 2: .* has characters that"):
            prompts_of(tokenizer, known[0], text)


def test_texts_that_a_model_has_no_embeddings_for():
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(["<eos>", "<new>"]), 0, 256, eos_ids=(256,))
    pair = ("abc", "a<new>" + "b" * 20)
    assert max(encode_pairs(tokenizer, pair)[0].tokens) == 257
    with pytest.raises(InputError, match=r"line 1: the model has 257 tokens.* number 257"):
        encode_pairs(tokenizer, pair, embeddings=257)
