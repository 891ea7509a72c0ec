"""What a saved folder says of generation: all that its source said, and nothing that no one has said."""

import dataclasses
import json

import jax
import pytest

from jaxrl4lm import models
from jaxrl4lm.data import CharacterTokenizer
from tests.model_folders import byte_tokenizer, make_folder

transformers = pytest.importorskip("transformers")

SPECIAL = ["<eot>", "<im_start>", "<im_end>"]
QWEN = {"eos_token": "<im_end>", "pad_token": "<eot>", "bos_token": None}
SAID = {"eos_token_id": [258, 256], "pad_token_id": 256, "do_sample": True, "temperature": 0.7, "top_p": 0.8}


def save_again(folder, target, **changes):
    """Loads and saves a folder; what the new one says of generation, and its configuration."""
    policy, params, tokenizer = models.load(folder)
    assert tokenizer is not None
    models.save(target, policy, params, dataclasses.replace(tokenizer, **changes))
    read = [json.loads((target / f"{name}.json").read_text()) for name in ("generation_config", "config")]
    return read[0], read[1]


@pytest.mark.parametrize(
    "said", [SAID, {"eos_token_id": [258, 256]}, {"eos_token_id": 258}, {**SAID, "x": None}]
)
def test_what_the_source_says_is_kept(tmp_path, said):
    folder = make_folder(tmp_path / "source", byte_tokenizer(SPECIAL), QWEN, said)
    generation, config = save_again(folder, tmp_path / "target")
    assert generation == said
    assert (config["pad_token_id"], config["bos_token_id"]) == (256, None)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "target")
    assert theirs == transformers.GenerationConfig.from_pretrained(folder)


def test_no_padding_is_invented(tmp_path):
    named = {"bos_token": "<bos>", "eos_token": "<eos>"}
    folder = make_folder(tmp_path / "source", byte_tokenizer(["<bos>", "<eos>"], "<bos>"), named)
    generation, config = save_again(folder, tmp_path / "target")
    assert generation == {"bos_token_id": 256, "eos_token_id": 257}
    assert config["pad_token_id"] is None
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert model.generation_config.eos_token_id == 257
    assert model.generation_config.pad_token_id is None


def test_end_tokens_that_were_changed_are_written(tmp_path):
    folder = make_folder(tmp_path / "source", byte_tokenizer(SPECIAL), QWEN, SAID)
    generation, config = save_again(folder, tmp_path / "target", eos_ids=(258, 65))
    assert generation == {**SAID, "eos_token_id": [258, 65]}
    assert config["eos_token_id"] == [258, 65]
    assert models.load(tmp_path / "target")[2].eos_ids == (258, 65)  # pyright: ignore


def test_end_tokens_of_the_model_count_where_generation_names_none(tmp_path):
    folder = make_folder(
        tmp_path / "source", byte_tokenizer(SPECIAL), None, {"eos_token_id": None, "top_p": 0.5}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 256}))
    generation, _ = save_again(folder, tmp_path / "target")
    assert generation == {"eos_token_id": 256, "top_p": 0.5}


def test_a_new_model_says_which_tokens_are_special(tmp_path):
    policy = models.LanguagePolicy(models.TransformerConfig(8, layers=1, width=16, heads=2, context=8))
    params = policy.init(jax.random.key(0))
    models.save(tmp_path, policy, params, CharacterTokenizer("abcde"))
    path = tmp_path / "generation_config.json"
    assert json.loads(path.read_text()) == {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    models.save(tmp_path, policy, params)  # without a tokenizer nothing is known of its tokens
    assert not path.exists()
