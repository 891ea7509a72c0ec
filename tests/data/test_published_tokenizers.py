"""Special tokens as published models lay them out: transformers says which ids a text has."""

import pytest
import tokenizers

from jaxrl4lm.data import CharacterTokenizer
from jaxrl4lm.data.corpus import encode_prompts
from jaxrl4lm.data.files import Row
from jaxrl4lm.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxrl4lm.types import InputError
from tests.model_folders import byte_tokenizer, make_folder, prefixing_tokenizer

transformers = pytest.importorskip("transformers")

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
    return make_folder(tmp_path_factory.mktemp("model"), make(), generation, **config)


def prompts_of(tokenizer, *texts, context=60):
    rows = [Row(i, {"prompt": text}) for i, text in enumerate(texts, start=1)]
    return encode_prompts(rows, "prompt", tokenizer, "file.jsonl", 4, context)


def test_prompts_have_the_ids_of_transformers(folder):
    ours = HuggingFaceTokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = prompts_of(ours, *TEXTS)
    assert prompts.ids == [theirs(text).input_ids for text in TEXTS]
    tokens, mask = prompts.batch(range(len(TEXTS)), ours.pad_id)
    assert [row[real].tolist() for row, real in zip(tokens, mask, strict=True)] == prompts.ids


def word_tokenizer():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[UNK]", "</s>"])
    return HuggingFaceTokenizer(backend, pad_id=2, eos_id=1, bos_id=None)


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
