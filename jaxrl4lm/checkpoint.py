"""Whole training states on disk through orbax: atomic, restored bit for bit."""

import asyncio
import contextlib
import copy
import logging
import pathlib
import sys
from functools import cache
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxrl4lm.types import InputError


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that closes only when all its tasks have ended."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def _all_reads_end():
    """Orbax closes its event loop at the first error, while other reads are under way. These would then write to a closed
    loop from their threads, and tell of their own errors whenever they are collected: after ours, on standard error.
    """
    original = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = original


class Checkpoints:
    """The checkpoints of one run, the last two kept. A save that is cut off leaves the one before it whole."""

    def __init__(self, folder: pathlib.Path, *, write: bool = True):
        """Opens the folder.

        Args:
          write: make it where it is missing, and clear away what saves that were cut off have left. False: only read.
        Raises:
          InputError: if it cannot be opened.
        """
        _quieten_writers()
        self.folder = folder.absolute()
        if not write and not self.folder.is_dir():
            raise self._none()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=write, cleanup_tmp_directories=write, read_only=not write
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be opened ({error.strerror}): check the folder") from None

    def save(self, number: int, state: Any, notes: dict[str, Any]) -> None:
        """Writes a state (a pytree of arrays, typed keys too) and its notes (JSON), in the background.

        Both are taken as they are now: afterwards the notes may be changed, and the state donated.

        Raises:
          InputError: if this or the save before it cannot be written.
        """
        # A copy of the notes: orbax turns them into text in the background.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(copy.deepcopy(notes))
        )
        try:
            self._manager.save(number, args=args)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def latest(self) -> int | None:
        """The number of the newest whole checkpoint."""
        return self._manager.latest_step()

    def notes(self) -> dict[str, Any]:
        """The notes of the newest checkpoint.

        Raises:
          InputError: if there is none, or it cannot be read.
        """
        number = self.latest()
        if number is None:
            raise self._none()
        try:
            args = ocp.args.Composite(notes=ocp.args.JsonRestore())
            with _all_reads_end():
                notes = self._manager.restore(number, args=args)["notes"]
        except Exception as error:  # orbax raises many kinds
            raise self._corrupt(number, error) from None
        if not isinstance(notes, dict):
            raise self._corrupt(number, ValueError("its notes are missing"))
        return notes

    def restore(self, like: Any) -> Any:
        """The newest state.

        Args:
          like: a state, or the shapes of one (`jax.ShapeDtypeStruct`), of the structure that was saved. Each leaf comes
            back with the sharding that it has here, wherever it was saved from; without one, on the first device.
        Raises:
          InputError: if it cannot be read, or is of another run.
        """
        number = self.latest()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def describe(x: Any) -> jax.ShapeDtypeStruct:
            sharding = getattr(x, "sharding", None) or device
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        shapes = jax.tree.map(describe, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            with _all_reads_end():
                return self._manager.restore(number, args=args)["state"]
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._corrupt(number, error) from None

    def _none(self) -> InputError:
        return InputError(
            f"{self.folder} holds no checkpoint: the run has not saved one yet, go on with it first"
        )

    def _unwritable(self, error: Exception) -> InputError:
        # The messages of tensorstore go from the general to the particular, and end with settings in brackets.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = reason.split(" [")[0].split(": ")[-1].strip() or type(error).__name__
        return InputError(f"a checkpoint in {self.folder} cannot be written ({reason}): make room there")

    def _corrupt(self, number: int | None, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return InputError(
            f"the checkpoint {self.folder / str(number)} is damaged or of another run ({reason}): "
            "remove that folder to fall back to the one before it"
        )

    def close(self) -> None:
        """Waits for the saves under way.

        Raises:
          InputError: if one cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        finally:
            self._manager.close()


@cache
def _quieten_writers() -> None:
    """Leaves it to `save` and `close` to say, in one sentence, that a checkpoint could not be written.

    What orbax logs of an error it raises as well. And where it gives up a save, writers that are still busy find its
    event loop closed, which Python reports with a traceback each, perhaps long after.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def report_others(event: Any) -> None:
        if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
            report(event)

    sys.unraisablehook = report_others
