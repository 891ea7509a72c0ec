"""Rewards that are slow or unsafe, in processes of their own, with a time limit for each completion."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from jaxrl4lm.data.rewards import Batch, Log, Reward, TrainerState, judge, parse
from jaxrl4lm.types import InputError

TO_START = 120.0
"""Seconds that a process may take to import the reward."""
TRIES = 2
"""How often a completion is tried."""
MOST_FAILED = 0.5
"""Share of a batch that may fail."""


class RewardPool:
    """A reward that is called in a pool of processes, one completion at a time; itself a reward.

    What raises, takes too long or dies is tried once more, then scores None: never a silent 0. If more than half of a batch
    fails so, something is wrong with the reward, and an `InputError` says what.
    """

    def __init__(self, reward: Reward | str, workers: int, *, limit: float = 60.0, name: str | None = None):
        """Starts the processes.

        Args:
          reward: a function that pickle finds by its module and its name, or what `rewards.parse` takes, as
            FILE.py:function.
          workers: how many processes.
          limit: seconds for a completion.
          name: for messages and metrics.
        Raises:
          InputError: if the reward cannot be sent.
        """
        self.__name__ = name or (reward if isinstance(reward, str) else getattr(reward, "__name__", "reward"))
        try:
            self._reward = pickle.dumps(reward)
        except Exception as error:  # pickle raises many kinds
            raise InputError(
                f"the reward {self.__name__} cannot be sent to another process ({error}): define it in a module of its own, "
                "or name it as FILE.py:function"
            ) from None
        if getattr(reward, "__module__", None) == "__main__":
            raise InputError(
                f"the reward {self.__name__} is defined in the main program, which other processes do not run: define it in "
                "a module of its own, or name it as FILE.py:function"
            )
        self._limit = limit
        self._workers = [_Worker(self._reward, self.__name__) for _ in range(workers)]

    def __call__(
        self,
        *,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        trainer_state: TrainerState,
        log_extra: Callable[[str, list], None],
        log_metric: Callable[[str, float], None],
        **columns: list,
    ) -> list[float | None]:
        """Scores, as those of `rewards.judge`, which calls it."""
        said = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        batches = [
            Batch([prompts[i]], [said[i]], [completion_ids[i]], {k: [v[i]] for k, v in columns.items()})
            for i in range(len(said))
        ]
        answers = self._answer([(batch, trainer_state) for batch in batches])
        failed = [answer for answer in answers if isinstance(answer, str)]
        log_metric(f"{self.__name__}/failures", len(failed))
        if len(failed) > MOST_FAILED * len(answers):
            raise InputError(
                f"the reward {self.__name__} failed for {len(failed)} of {len(answers)} completions, the last time because it "
                f"{failed[-1].removesuffix(': mend the function')}: mend it, or, if it is slow, give it more than "
                f"{self._limit:g} seconds for each"
            )
        extra: dict[str, list] = {}
        for i, answer in enumerate(answers):
            if not isinstance(answer, str):
                for metric, value in answer[1].items():
                    log_metric(metric, value)
                for column, values in answer[2].items():
                    extra.setdefault(column, [None] * len(answers))[i] = values[0]
        for column, values in extra.items():
            log_extra(column, values)
        return [None if isinstance(answer, str) else answer[0] for answer in answers]

    def _answer(self, tasks: list[Any]) -> list[Any]:
        """For each task (score or None, metrics, columns), or in words why it failed."""
        left, tries = deque(range(len(tasks))), [0] * len(tasks)
        answers: list[Any] = [None] * len(tasks)
        while left or any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if worker.idle and left:
                    worker.give(left.popleft(), tasks, self._limit)
            for worker in self._wait():
                index, (succeeded, answer) = worker.task, worker.take()
                if index is None:
                    continue
                tries[index] += 1
                if succeeded or tries[index] == TRIES:
                    answers[index] = answer
                else:
                    left.append(index)
        return answers

    def _wait(self) -> list["_Worker"]:
        """The workers that have said something, or whose time is over; those are replaced when they are taken from."""
        until = min(worker.deadline for worker in self._workers)
        ready = wait(
            [worker.connection for worker in self._workers if worker.busy], max(0.0, until - time.monotonic())
        )
        now = time.monotonic()
        return [worker for worker in self._workers if worker.connection in ready or worker.deadline <= now]

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process, and the task that it works on."""

    def __init__(self, reward: bytes, name: str):
        self._reward, self._name = reward, name
        self._start()

    def _start(self) -> None:
        self.task: int | None = None
        self._ready, self._limit = False, TO_START
        self.connection, theirs = multiprocessing.Pipe()
        self.deadline = time.monotonic() + TO_START
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxrl4lm.data.reward_pool", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        self.connection.send_bytes(self._reward)

    @property
    def busy(self) -> bool:
        """Whether it is starting or working."""
        return not self._ready or self.task is not None

    @property
    def idle(self) -> bool:
        """Whether it waits for a task."""
        return not self.busy

    def give(self, index: int, tasks: list[Any], limit: float) -> None:
        """Sends it a task."""
        self.task, self._limit, self.deadline = index, limit, time.monotonic() + limit
        try:
            self.connection.send(tasks[index])
        except OSError:  # it has died: `take` tells
            self.deadline = 0.0

    def take(self) -> tuple[bool, Any]:
        """What it said: (did it succeed, the answer or what went wrong). One that has died or hangs is replaced."""
        wrong = "died"
        try:
            if self.connection.poll():
                succeeded, answer = self.connection.recv()
                if not self._ready:
                    if not succeeded:
                        raise InputError(f"the reward {self._name} cannot be loaded ({answer}): mend it")
                    self._ready, self.deadline = True, float("inf")
                    return True, None
                self.task, self.deadline = None, float("inf")
                return succeeded, answer
            if self._process.poll() is None:
                wrong = f"took longer than {self._limit:g} seconds"
        except (EOFError, OSError):
            pass
        if not self._ready:
            self.end()
            raise InputError(
                f"the process of the reward {self._name} {wrong} before it was ready: mend what it imports"
            )
        self.end()
        self._start()
        return False, wrong

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self.connection.close()


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except Exception:  # a stream of a notebook or a test
        return False
    return True


def _serve(connection: Connection) -> None:
    """What a process does: loads the reward, then answers until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what an interruption means
    try:
        reward = pickle.loads(connection.recv_bytes())
        reward = parse(reward) if isinstance(reward, str) else reward
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    connection.send((True, None))
    while True:
        try:
            batch, state = connection.recv()
        except EOFError:
            return
        log = Log()
        try:
            [[score]] = judge({"": reward}, batch, state, log)
        except InputError as error:
            connection.send((False, _name_cause(error)))
        else:
            connection.send((True, (None if score != score else score, log.metrics, _first(log.columns))))


def _name_cause(error: InputError) -> str:
    """The sentence without its beginning, which names the reward."""
    return str(error).removeprefix("the reward  ")


def _first(columns: Mapping[str, list]) -> dict[str, list]:
    return {name: values for name, values in columns.items() if len(values) == 1}


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
