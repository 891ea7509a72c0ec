"""Any task as a gymnax 1.0 environment, one step a token: slow and obviously right."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from jaxrl4lm.tasks.task import Prompts, Task, token_rewards
from jaxrl4lm.types import Array, Key


@struct.dataclass
class TokenState(environment.EnvState):
    """One episode: a prompt and the completion so far."""

    prompts: Prompts
    """Of one problem; leaves `[1, ...]`."""
    completion: Array
    """int32 `[T]`; padding from `time` on."""
    time: Array
    """Tokens chosen so far."""


@struct.dataclass
class TokenParams(environment.EnvParams):
    """The longest completion, in tokens."""

    max_steps_in_episode: int = 1


class Observation(NamedTuple):
    """The prompt, then the completion so far."""

    tokens: Array
    """int32 `[P + T]`."""
    mask: Array
    """bool `[P + T]`, True at real tokens."""


class TokenEnvironment(environment.Environment[TokenState, TokenParams]):
    """States are texts and actions are tokens. The end token terminates an episode, the length limit truncates it."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    @property
    def default_params(self) -> TokenParams:
        return TokenParams(max_steps_in_episode=self.task.completion_length)

    def reset_env(self, key: Key, params: TokenParams) -> tuple[Observation, TokenState]:
        """Draws a problem."""
        return self.reset_to(self.task.sample(key, 1), params)

    def reset_to(self, prompts: Prompts, params: TokenParams) -> tuple[Observation, TokenState]:
        """Starts an episode on one given problem, leaves `[1, ...]`."""
        pad = jnp.full((self.task.completion_length,), self.task.tokenizer.pad_id, jnp.int32)
        state = TokenState(prompts=prompts, completion=pad, time=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(
        self, key: Key, state: TokenState, action: Array, params: TokenParams
    ) -> tuple[Observation, TokenState, Array, Array, dict[Any, Any]]:
        """Appends a token. A score of the whole completion is paid when the episode terminates or is truncated."""
        del key
        completion = state.completion.at[state.time].set(action)
        state = TokenState(prompts=state.prompts, completion=completion, time=state.time + 1)
        terminated = self.is_terminated(state, params)
        done = terminated | self.is_truncated(state, params)
        mask = (jnp.arange(completion.shape[0]) < state.time)[None]
        rewards = self.task.reward(state.prompts, completion[None], mask)
        reward = token_rewards(rewards, mask)[0, state.time - 1]
        if rewards.ndim == 1:
            reward = jnp.where(done, reward, 0.0)
        return self.get_obs(state), state, reward, terminated, {"discount": self.discount(state, params)}

    def get_obs(self, state: TokenState, params=None, key=None) -> Observation:
        chosen = jnp.arange(state.completion.shape[0]) < state.time
        return Observation(
            tokens=jnp.concatenate([state.prompts.tokens[0], state.completion]),
            mask=jnp.concatenate([state.prompts.mask[0], chosen]),
        )

    def is_terminated(self, state: TokenState, params: TokenParams) -> Array:
        last = state.completion[jnp.maximum(state.time - 1, 0)]
        return (state.time > 0) & (last == self.task.tokenizer.eos_id)

    @property
    def num_actions(self) -> int:
        return self.task.tokenizer.vocab_size

    def action_space(self, params: TokenParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: TokenParams | None = None) -> spaces.Dict:
        length = self.task.prompt_length + self.task.completion_length
        tokens = spaces.Box(0, self.num_actions - 1, (length,), jnp.int32)
        return spaces.Dict({"tokens": tokens, "mask": spaces.Box(0, 1, (length,), jnp.bool_)})
