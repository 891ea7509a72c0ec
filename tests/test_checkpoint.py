"""Checkpoints: every leaf comes back bit for bit, whatever its type; the newest whole one counts."""

import asyncio
import gc
import subprocess
import sys

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


def test_shardings_are_those_that_are_asked_for(tmp_path):
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (("fsdp",), ()))
    second = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    keys = jax.random.split(jax.random.key(0), 2)
    saved = {
        "rows": jax.device_put(jnp.arange(8.0).reshape(4, 2), rows),
        "whole": jax.device_put(jnp.arange(3), whole),
        "keys": jax.device_put(keys, rows),
        "second": jax.device_put(jnp.float32(1), second),
        "anywhere": jax.device_put(jnp.arange(4.0), rows),
    }
    checkpoints = Checkpoints(tmp_path / "saved")
    checkpoints.save(0, saved, {})
    checkpoints.close()
    reader = Checkpoints(tmp_path / "saved", write=False)
    same = reader.restore(saved)
    assert raw(same) == raw(saved)
    assert all(same[name].sharding.is_equivalent_to(x.sharding, x.ndim) for name, x in saved.items())
    asked = {"rows": whole, "whole": second, "keys": whole, "second": whole, "anywhere": None}
    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=asked[n]) for n, x in saved.items()}
    other = reader.restore(like)
    assert raw(other) == raw(saved)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for name, x in other.items():
        assert x.sharding.is_equivalent_to(asked[name] or first, x.ndim)


FULL = """
import pathlib, resource, sys
import jax
from jaxrl4lm.checkpoint import Checkpoints

checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(0, {"x": 1.0 * jax.numpy.arange(10)}, {})
checkpoints.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
noise = {name: jax.random.normal(jax.random.key(0), (50_000,)) for name in "xyz"}
try:
    checkpoints.save(1, noise, {})
    checkpoints.close()
except ValueError as error:
    print(error)
print(Checkpoints(pathlib.Path(sys.argv[1]), write=False).latest())
"""


def test_a_disk_that_is_full_is_one_sentence(tmp_path):
    """Files may not grow beyond a limit, which writers meet as they do a full disk."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "saved")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    said = f"a checkpoint in {tmp_path}/saved cannot be written (File too large): make room there"
    assert result.stdout.splitlines() == [said, "0"]
    assert result.stderr == ""


@pytest.mark.slow
def test_a_read_that_fails_leaves_nothing_under_way(tmp_path, caplog, monkeypatch):
    """Where one read fails others are under way: what became of them must not be told later."""
    checkpoints = Checkpoints(tmp_path / "saved")
    many = {f"{i}": jnp.arange(100.0) for i in range(30)}
    checkpoints.save(0, many, {})
    checkpoints.close()
    for path in (tmp_path / "saved" / "0" / "state").rglob("d/*"):
        path.unlink()
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    for _ in range(10):
        with pytest.raises(InputError, match="damaged"):
            Checkpoints(tmp_path / "saved", write=False).restore(many)
        gc.collect()
    assert not told
    assert not caplog.records
