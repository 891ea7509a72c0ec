"""Checkpoints: every leaf comes back bit for bit, whatever its type; the newest whole one counts."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxrl4lm.checkpoint import Checkpoints
from jaxrl4lm.types import InputError


def state(seed):
    key = jax.random.key(seed)
    return {
        "weights": jax.random.normal(key, (3, 2)),
        "half": jax.random.normal(key, (2,)).astype(jnp.bfloat16),
        "count": jnp.int32(seed),
        "key": key,
        "keys": jax.random.split(key, 2),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
        "nothing": (),
    }


def raw(tree):
    def one(x):
        x = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.asarray(x).tobytes(), x.dtype, x.shape

    return jax.tree.map(one, tree)


@pytest.fixture
def folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "saved")
    for i in range(3):
        checkpoints.save(i, state(i), {"done": i, "text": "é", "list": [0.1, None]})
    checkpoints.close()
    return tmp_path / "saved"


def test_the_newest_comes_back_whole(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 2
    assert checkpoints.notes() == {"done": 2, "text": "é", "list": [0.1, None]}
    restored = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert raw(restored) == raw(state(2))
    assert raw(checkpoints.restore(state(0))) == raw(state(2))
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]  # two are kept
    checkpoints.close()


def test_a_save_that_was_cut_off_does_not_count(folder):
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "7.orbax-checkpoint-tmp" / "state").mkdir()
    reader = Checkpoints(folder, write=False)
    assert reader.latest() == 2
    assert (folder / "7.orbax-checkpoint-tmp").exists()  # perhaps of a run that is under way
    writer = Checkpoints(folder)
    assert writer.latest() == 2
    writer.save(7, state(7), {})
    writer.close()
    assert Checkpoints(folder, write=False).latest() == 7


def test_what_was_saved_may_be_donated(tmp_path):
    """The steps that follow overwrite the memory of the state while it is still being written."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    current = {f"{i}": jnp.full((1000, 100), 0.5) for i in range(40)}
    current = step(current)
    checkpoints = Checkpoints(tmp_path / "saved")
    for i in range(3):
        checkpoints.save(i, current, {})
        for _ in range(10):
            current = jax.block_until_ready(step(current))
    checkpoints.close()
    restored = Checkpoints(tmp_path / "saved", write=False).restore(jax.eval_shape(lambda: current))
    assert all((x == 21.5).all() for x in jax.tree.leaves(restored))


def test_notes_are_those_of_the_moment(tmp_path, monkeypatch):
    """The caller goes on to change them before a slow disk has got to them."""
    write = ocp.JsonCheckpointHandler._save_fn

    async def late(*arguments):
        await asyncio.sleep(0.2)
        await write(*arguments)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", late)
    checkpoints, notes = Checkpoints(tmp_path / "saved"), {"done": 0, "scores": {"a": 0}}
    for i in range(3):
        notes["done"] = notes["scores"]["a"] = i
        checkpoints.save(i, {"x": jnp.zeros((1000, 1000))}, notes)
        notes["done"] = notes["scores"]["a"] = -1
    checkpoints.close()
    assert Checkpoints(tmp_path / "saved", write=False).notes() == {"done": 2, "scores": {"a": 2}}


def test_reading_makes_nothing(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "missing", write=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "empty", write=False).notes()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # orbax leaves a coroutine behind
@pytest.mark.parametrize(
    "like",
    [
        lambda s: s | {"weights": jnp.zeros((2, 3))},
        lambda s: s | {"more": jnp.zeros(())},
        lambda s: {"weights": s["weights"]},
    ],
    ids=["shape", "more", "fewer"],
)
def test_states_of_another_structure(folder, like):
    with pytest.raises(
        InputError, match=r"saved/2 is damaged or of another run \(.*\): remove that folder"
    ) as error:
        Checkpoints(folder).restore(like(state(0)))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        Checkpoints(tmp_path / "file" / "below")
