"""Whole training states on disk through orbax: atomic, restored bit for bit."""

import json
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxrl4lm.types import InputError


class Checkpoints:
    """The checkpoints of one run, the last two kept. A save that is cut off leaves the one before it whole."""

    def __init__(self, folder: pathlib.Path):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, number: int, state: Any, notes: dict[str, Any]) -> None:
        """Writes a state (a pytree of arrays, typed keys too) and its notes (JSON), in the background.

        The state is copied off the device before this returns, so it may be donated afterwards.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        self._manager.save(number, args=args)

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
            raise InputError(f"{self.folder} holds no checkpoint: the run has not saved one yet, start it again")
        try:
            args = ocp.args.Composite(notes=ocp.args.JsonRestore())
            return self._manager.restore(number, args=args)["notes"]
        except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
            raise self._corrupt(number, error) from None

    def restore(self, like: Any) -> Any:
        """The newest state.

        Args:
          like: a state, or its `jax.eval_shape`, of the structure that was saved.
        Raises:
          InputError: if it cannot be read, or is of another run.
        """
        number = self.latest()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            return self._manager.restore(number, args=args)["state"]
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._corrupt(number, error) from None

    def _corrupt(self, number: int | None, error: Exception) -> InputError:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return InputError(
            f"the checkpoint {self.folder / str(number)} is damaged or of another run ({reason}): "
            "remove that folder to fall back to the one before it"
        )

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()
