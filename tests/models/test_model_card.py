"""The README.md of a saved model, read by the hub's own parser."""

import pathlib

import numpy as np
import pytest

import jaxrl4lm
from jaxrl4lm.models.model_card import write_model_card

huggingface_hub = pytest.importorskip("huggingface_hub")

SETTINGS = {
    "learning_rate": 1e-6,
    "steps": 500,
    "stop": ("</s>", "a|b"),
    "reward": "/home/someone/mine.py:reward",
    "chat_template": pathlib.Path("/home/someone/chat.jinja"),
    "mesh": None,
    "lora_targets": [],
}


@pytest.fixture
def load(tmp_path):
    def load(base="org/Base-1.5", data=("org/set", "/home/someone/rows.jsonl"), figures=None):
        figures = (
            {"held-out loss": np.float64(1.23456789), "reward": np.float32(0.5)}
            if figures is None
            else figures
        )
        write_model_card(
            tmp_path,
            name="/home/someone/runs/grpo-seed0",
            base=base,
            data=data,
            method="grpo",
            settings=SETTINGS,
            figures=figures,
        )
        return huggingface_hub.ModelCard.load(tmp_path / "README.md")

    return load


def test_the_hub_reads_what_the_model_is(load):
    card = load()
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/Base-1.5",
        "datasets": ["org/set"],
        "tags": ["jaxrl4lm", "grpo"],
    }


def test_a_person_reads_how_it_was_made(load):
    lines = load().text.splitlines()
    for line in (
        "# grpo-seed0",
        "- rows.jsonl",
        "- org/set",
        "| learning_rate | 1e-06 |",
        "| steps | 500 |",
        r"| stop | </s>, a\|b |",
        "| reward | mine.py:reward |",
        "| chat_template | chat.jinja |",
        "| lora_targets | none |",
        "| held-out loss | 1.23457 |",
        "| reward | 0.5 |",
        f"| jaxrl4lm | {jaxrl4lm.__version__} |",
    ):
        assert line in lines
    assert not any("mesh" in line for line in lines)


@pytest.mark.parametrize(
    "base",
    [None, "/home/someone/folder", "~/folder", "./folder", "C:\\models\\folder", "/home/someone/folder/"],
)
def test_no_folder_of_the_machine_is_told(load, base):
    card = load(base, data=["/home/someone/org/rows.jsonl", "org/rows.csv"], figures={})
    assert "base_model" not in card.data.to_dict()
    assert "datasets" not in card.data.to_dict()
    assert not any(word in card.content for word in ("someone", "home", "C:", "org", "## Figures"))
    assert ("A new model." if base is None else "\nfolder\n") in card.content


def test_a_folder_here_is_no_name_of_the_hub(load, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    card = load("runs/model")
    assert "base_model" not in card.data.to_dict()
    assert "runs" not in card.content
