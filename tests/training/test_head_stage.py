"""Task heads from rows to folders: what is learned, what stays frozen, and that transformers says the same."""

import json

import jax
import numpy as np
import pytest

from jaxrl4lm import data, models, training
from jaxrl4lm.data.labels import NO_LABEL, encode_labelled, list_labels
from jaxrl4lm.lm import HeadConfig, PairConfig, heads
from jaxrl4lm.training.labelled import pad_labelled
from jaxrl4lm.training.scores import score_answers, score_classes, score_tags
from jaxrl4lm.types import InputError
from tests.selection import slow_but
from tests.training.sentences import bert, make_rows, modernbert, word_tokenizer, write_model, write_rows

TOKENIZER = word_tokenizer()
TASKS = {"span": "name", "sequence": "long", "token": "tags"}
LLAMA = models.TransformerConfig(TOKENIZER.vocab_size, layers=2, width=16, heads=2, context=64, mlp_width=24)
BACKBONES = {"bert": bert(2, 16), "llama": LLAMA}


def rows_of(records):
    return [data.Row(i, record, "rows.jsonl") for i, record in enumerate(records, start=1)]


def prepare(kind, config, count=40, **pairs):
    rows = rows_of(make_rows(TASKS[kind], count, 0))
    return training.prepare_labelled(
        rows, TOKENIZER, kind, PairConfig(**pairs), context=64, embeddings=config.vocab_size
    )


@pytest.mark.parametrize(
    "backbone, kind",
    slow_but([(b, k) for b in BACKBONES for k in TASKS], [("bert", "span")]),
)
def test_a_head_learns_over_a_frozen_backbone_and_transformers_says_the_same(backbone, kind, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    policy = models.LanguagePolicy(BACKBONES[backbone])
    dataset = prepare(kind, policy.config, held_out=0)
    start = training.init_parameters(policy, jax.jit(policy.init)(jax.random.key(0)), dataset)
    stage = training.head(
        policy,
        TOKENIZER,
        dataset,
        config=HeadConfig(steps=20, batch=40, warmup=0, learning_rate=3e-3),
        evaluate_every=10,
    )
    run = training.fit([stage], start, out=tmp_path / "run")
    params = run.params
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], start["backbone"])
    assert (np.asarray(params["head"].kernel) != start["head"].kernel).all()
    scores = run.progress.scores["head"]
    assert scores["held_out/loss"] < run.progress.scores["start"]["held_out/loss"]
    assert {"span": {"held_out/exact_match"}, "sequence": {"held_out/f1"}, "token": {"held_out/accuracy"}}[
        kind
    ] < set(scores)
    auto = {
        "span": "QuestionAnswering",
        "sequence": "SequenceClassification",
        "token": "TokenClassification",
    }[kind]
    theirs = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(tmp_path / "run" / "model").eval()
    row = make_rows(TASKS[kind], 1, 5)[0]
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    columns = {"span": ("question", "context"), "sequence": ("sentence1", "sentence2"), "token": ("tokens",)}[
        kind
    ]
    given = [row[name] if kind != "token" else " ".join(row[name]) for name in columns]
    inputs = hf(*given, return_tensors="pt")
    if backbone == "llama":
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = theirs(**inputs)
    logits = torch.stack([out.start_logits, out.end_logits], 1) if kind == "span" else out.logits
    labels = list_labels(rows_of(make_rows(TASKS[kind], 40, 0)), kind)
    [example] = encode_labelled(rows_of([row]), TOKENIZER, kind, labels).examples
    assert example.tokens == inputs["input_ids"][0].tolist()
    texts = pad_labelled([example], kind, 0, len(example.tokens), parts=policy.config.token_types)
    learner = heads.Learner(policy, heads.OUTPUTS[kind])
    read = jax.jit(lambda params: heads.read(params, texts, learner))
    np.testing.assert_allclose(read(params), logits, atol=2e-5)
    if kind != "span":
        assert [theirs.config.id2label[i] for i in range(len(labels))] == labels


@pytest.mark.slow
def test_what_is_frozen_is_what_was_asked_for():
    policy = models.LanguagePolicy(bert(2, 16))
    dataset = prepare("span", policy.config)
    start = training.init_parameters(policy, jax.jit(policy.init)(jax.random.key(0)), dataset)
    config = HeadConfig(steps=2, batch=4, warmup=0)

    def train(frozen, **changes):
        stage = training.head(
            policy, TOKENIZER, dataset, config=config.replace(**changes), trainable=training.freeze(*frozen)
        )
        params = training.fit([stage], start).params
        return params, {
            name
            for name, x in models.huggingface.flatten(params["backbone"]).items()
            if not np.array_equal(x, models.huggingface.flatten(start["backbone"])[name])
        }

    whole, moved = train(["none"])
    assert {"embedding", "layer_0/mlp/up/kernel", "layer_1/mlp/up/kernel"} < moved
    _, some = train(["embedding", "layer_0/"])
    assert some == {name for name in moved if name.startswith("layer_1/")}
    parts, _ = train(["none"], micro_batches=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), parts["head"], whole["head"])
    with pytest.raises(InputError, match="no regular expression"):
        training.freeze("layer_(")


def test_rows_become_ids_and_targets():
    record = {
        "question": "who made ?",
        "context": "sold for nine , made for Ada Turing , kept for ten .",
        "answers": {},
    }
    record["answers"] = {"text": ["Ada Turing"], "answer_start": [record["context"].index("Ada")]}
    [made] = encode_labelled(rows_of([record]), TOKENIZER, "span", []).examples
    words = [TOKENIZER.backend.id_to_token(i) for i in made.tokens]
    assert words == ["[CLS]", "who", "made", "?", "[SEP]", *record["context"].split(), "[SEP]"]
    assert made.parts == [0] * 5 + [1] * 14
    first, last = made.targets
    assert words[first : last + 1] == ["Ada", "Turing"]
    assert record["context"][made.places[first][0] : made.places[last][1]] == "Ada Turing"
    assert made.places[1] == (0, 0)
    cut = encode_labelled(rows_of([record]), TOKENIZER, "span", [], max_length=14)
    assert (cut.cut, len(cut.examples[0].tokens)) == (1, 14)
    gone = [encode_labelled(rows_of([record]), TOKENIZER, "span", [], max_length=n).dropped for n in (12, 6)]
    assert [list(d) for d in gone] == [
        ["its answer lies beyond max_length"],
        ["its question leaves no room for the context"],
    ]
    listed = {**record, "answers": [{"text": "Ada", "answer_start": record["context"].index("Ada")}]}
    assert encode_labelled(rows_of([listed]), TOKENIZER, "span", []).examples[0].targets == [first, first]
    wrong = {**record, "answers": {"text": ["Ada"], "answer_start": [3]}}
    second = {**record, "answers": [{"text": "Ada", "answer_start": 3}, *listed["answers"]]}
    assert [each.targets for each in encode_labelled(rows_of([second]), TOKENIZER, "span", []).examples] == [
        each.targets for each in encode_labelled(rows_of([listed]), TOKENIZER, "span", []).examples
    ]
    none = {**record, "answers": {"text": [], "answer_start": []}}
    dropped = encode_labelled(rows_of([wrong, none]), TOKENIZER, "span", []).dropped
    assert dropped == {"its answer does not stand where answer_start says": [1], "no answer": [2]}

    pair = {"sentence1": "Ada lost one", "sentence2": "one lost", "label": 1}
    rows = rows_of([pair, {**pair, "label": 0}, {**pair, "label": NO_LABEL}])
    assert list_labels(rows, "sequence") == [0, 1]
    encoded = encode_labelled(rows, TOKENIZER, "sequence", [0, 1])
    assert [example.targets for example in encoded.examples] == [[1], [0]]
    assert encoded.examples[0].parts == [0] * 5 + [1] * 3
    assert encoded.dropped == {"no label": [3]}

    unmarked = rows_of([{"tokens": ["Ada", "lost", "one"], "tags": [1, -100, 0]}])
    assert list_labels(unmarked, "token") == [0, 1]
    [made] = encode_labelled(unmarked, TOKENIZER, "token", [0, 1]).examples
    assert made.targets == [NO_LABEL, 1, NO_LABEL, 0, NO_LABEL]

    hyphened = {"tokens": ["Ada", "lost,found", "one"], "tags": ["B-PER", "O", "I-PER"]}
    rows = rows_of([hyphened])
    labels = list_labels(rows, "token")
    [made] = encode_labelled(rows, TOKENIZER, "token", labels).examples
    assert [labels[i] if i != NO_LABEL else None for i in made.targets] == [
        None,
        "B-PER",
        "O",
        None,
        None,
        "I-PER",
        None,
    ]


@pytest.mark.parametrize(
    "kind, record, message",
    [
        ("span", {"text": "x"}, "line 1: .*--kind span reads `question` and `context` and `answers`"),
        ("span", {"question": "a", "context": "b", "answers": ["c"]}, "'answers' is not of the form"),
        ("sequence", {"text": "x", "label": 0.5}, r"the label 0\.5 is no class"),
        ("sequence", {"text": ["x"], "label": 1}, "column 'text' holds no text"),
        ("token", {"tokens": ["a"], "tags": "O"}, "'tags' holds no list"),
        ("token", {"tokens": ["a"], "tags": ["O", "O"]}, "2 tags for 1 tokens"),
        ("token", {"tokens": "a", "tags": ["O"]}, "'tokens' holds no list of words"),
    ],
)
def test_rows_that_cannot_be_used_are_named(kind, record, message):
    rows = rows_of([record])
    with pytest.raises(InputError, match=f"rows.jsonl, .*{message}" if "line" not in message else message):
        encode_labelled(rows, TOKENIZER, kind, list_labels(rows, kind))


def test_scores():
    assert score_answers(["the Ada Turing."], [["Ada", "ada turing"]]) == {"f1": 1.0, "exact_match": 1.0}
    assert score_answers(["Ada lost"], [["Ada Turing"]]) == {"f1": 0.5, "exact_match": 0.0}
    assert score_answers(["", ""], [["Ada"], ["the"]]) == {"f1": 0.5, "exact_match": 0.5}
    # Class 0: 1 of 2 said and 1 right; class 1: 1 said and 2 right; class 2 does not occur.
    assert score_classes([0, 0, 1], [0, 1, 1], 3) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    labels = ["B-PER", "I-PER", "O"]
    scores = score_tags([[0, 1, 2], [0, 2]], [[0, 1, 2], [0, 1]], labels)
    assert scores == {"accuracy": 0.8, "f1": 0.5}
    assert score_tags([[0, 1]], [[0, 0]], ["DT", "NN"])["accuracy"] == 0.5


@pytest.mark.slow
def test_what_a_sibling_task_taught_serves_a_frozen_backbone():
    """The table in docs/heads.md: the name after "by" is found by a whole model, and by a head on features that had learned to
    tag names; not by a head on random features."""
    policy = models.LanguagePolicy(modernbert())

    def train(kind, backbone, frozen, learning_rate):
        dataset = prepare(kind, policy.config, 1500, held_out=200)
        config = HeadConfig(steps=150, batch=32, learning_rate=learning_rate)
        stage = training.head(
            policy, TOKENIZER, dataset, config=config, trainable=training.freeze(frozen), evaluate_every=150
        )
        run = training.fit([stage], training.init_parameters(policy, backbone, dataset))
        return run.params["backbone"], run.history["held_out"][-1]

    random = jax.jit(policy.init)(jax.random.key(0))
    sibling, _ = train("token", random, "none", 2e-3)
    scores = {
        "whole": train("span", random, "none", 2e-3)[1],
        "frozen sibling": train("span", sibling, "backbone", 1e-2)[1],
        "frozen random": train("span", random, "backbone", 1e-2)[1],
    }
    assert scores["whole"] >= 0.95, scores
    assert scores["frozen sibling"] >= 0.9, scores
    assert scores["frozen random"] <= 0.7, scores


def test_the_likeliest_span_is_the_best_pair():
    logits = np.random.default_rng(0).normal(size=(20, 2, 9)).astype(np.float32)
    allowed = np.random.default_rng(1).random((20, 9)) < 0.6
    allowed[:, 4] = True
    found = np.asarray(heads.find_spans(logits, allowed))
    for (first, last), scores, may in zip(found, logits, allowed, strict=True):
        pairs = [(i, j) for i in range(9) for j in range(i, 9) if may[i] and may[j]]
        assert (first, last) == max(pairs, key=lambda pair: scores[0, pair[0]] + scores[1, pair[1]])


def test_the_command(capsys, tmp_path):
    from jaxrl4lm.cli import main

    model = write_model(tmp_path / "model", bert(1, 16))
    rows = write_rows(tmp_path / "rows.jsonl", "name", 30)
    words = ["head", "--kind", "span", "--model", model, "--dataset", rows, "--steps", 2, "--batch", 4]
    run = tmp_path / "run"
    assert main([*map(str, words), "--evaluate-every", "1", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "27 labelled rows; 3 held out" in said
    assert "34 parameters learn" in said
    assert "held-out F1" in said
    assert main(["evaluate", str(run), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (record["held_out"], record["held_out/loss"]) == (last["held_out"], last["held_out/loss"])
    assert main(["head", "--resume", str(run)]) == 0
    again = [
        *map(str, words),
        "--model",
        str(run / "model"),
        "--freeze",
        "none",
        "--out",
        str(tmp_path / "next"),
    ]
    assert main(again) == 0
    capsys.readouterr()
    for extra, message in (
        (["--kind", "token"], "--kind token reads `tokens` and `tags`"),
        (["--batch", "5", "--micro-batches", "2"], "--batch 5 must be a multiple"),
        (["--model", str(tmp_path)], "config.json is missing"),
        (["--freeze", "("], "--freeze (: no regular expression"),
        (["--freeze", "layer_9/"], "--freeze layer_9/: no parameter is called so: give a part of"),
        (["--freeze", "backbone", "none"], "--freeze backbone none: none stands alone"),
    ):
        assert main([*map(str, words), *extra]) == 2
        assert message in capsys.readouterr().err
    main(["generate", str(model), "--prompt", "Ada"])
    assert "encoder" in capsys.readouterr().err
