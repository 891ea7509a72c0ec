"""Small networks for control. Each maps observations `[..., *shape]` to outputs `[..., outputs]`, in float32."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl4lm.models.orthogonal import orthogonal
from jaxrl4lm.types import Array, Key, Params

Network: TypeAlias = nn.Module
"""Any of them, or one of your own."""
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "silu": nn.silu}
GAIN = math.sqrt(2)
"""Of hidden layers, for either activation: Huang et al. 2022, "The 37 implementation details", no. 2."""


def _dense(size: int, gain: float) -> nn.Dense:
    return nn.Dense(size, kernel_init=orthogonal(gain))


class _Readout(nn.Module):
    """The last layer, and outputs that no observation changes."""

    outputs: int
    gain: float
    constants: int

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        read = _dense(self.outputs, self.gain)(hidden)
        if not self.constants:
            return read
        constants = self.param("constants", nn.initializers.zeros, (self.constants,))
        shape = (*read.shape[:-1], self.constants)
        return jnp.concatenate([read, jnp.broadcast_to(constants, shape)], axis=-1)


class Perceptron(nn.Module):
    """Dense layers, orthogonal at first.

    Reference: Saxe et al. 2014, arXiv:1312.6120; gains as of Andrychowicz et al. 2021, arXiv:2006.05990.
    """

    outputs: int
    axes: int = 1
    """How many axes an observation has; they are flattened."""
    widths: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    gain: float = 1.0
    """Of the last layer: 0.01 for a policy that begins near uniform, 1 for values."""
    constants: int = 0
    """Outputs that are parameters themselves, as the log standard deviations of a Gaussian policy."""
    layer_norm: bool = False
    """Normalise before each activation, which PQN needs."""

    @nn.compact
    def __call__(self, observations: Array) -> Array:
        x = observations.reshape(*observations.shape[: observations.ndim - self.axes], -1)
        for width in self.widths:
            x = _dense(width, GAIN)(x)
            x = nn.LayerNorm()(x) if self.layer_norm else x
            x = ACTIVATIONS[self.activation](x)
        return _Readout(self.outputs, self.gain, self.constants)(x)


def windows(images: Array, size: int = 3) -> Array:
    """Images `[..., H, W, C]` → all their squares `[..., H - size + 1, W - size + 1, size · size · C]`.

    A dense layer of these is a convolution. XLA's own takes 19 times as long in a training loop on a CPU
    (`benchmarks/agents.py --only convolution`), where this is one product of matrices, also of a population.
    """
    height, width = (n - size + 1 for n in images.shape[-3:-1])
    shifted = [images[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1)


class Convolution(nn.Module):
    """One convolution of 3 × 3 and one dense layer, for observations `[H, W, C]` of MinAtar.

    Reference: Young & Tian 2019, arXiv:1903.03176.
    """

    outputs: int
    channels: int = 16
    width: int = 128
    gain: float = 1.0
    constants: int = 0
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observations: Array) -> Array:
        x = _dense(self.channels, GAIN)(windows(observations))
        x = nn.LayerNorm()(x) if self.layer_norm else x
        x = nn.relu(x)
        x = _dense(self.width, GAIN)(x.reshape(*x.shape[:-3], -1))
        x = nn.LayerNorm()(x) if self.layer_norm else x
        return _Readout(self.outputs, self.gain, self.constants)(jax.nn.relu(x))


class _Recurrent(nn.Module):
    """A dense layer, a gated recurrent unit, and a readout. `T` time, `N` sequences side by side, `H` units."""

    outputs: int
    axes: int
    width: int
    gain: float
    constants: int

    def setup(self):
        self.embedding = _dense(self.width, GAIN)
        self.cell = nn.GRUCell(self.width, recurrent_kernel_init=orthogonal())
        self.readout = _Readout(self.outputs, self.gain, self.constants)

    def __call__(self, memory: Array, observations: Array, begins: Array) -> tuple[Array, Array]:
        """(memory `[N, H]`, observations `[T, N, ...]`, begins `[T, N]`) → outputs, memories after each `[T, N, H]`."""
        embedded = self._embed(observations)

        def once(cell: nn.GRUCell, memory: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            embedded, begins = at
            memory, _ = cell(_forget(memory, begins), embedded)
            return memory, memory

        along_time = nn.scan(once, variable_broadcast="params", split_rngs={"params": False})
        _, memories = along_time(self.cell, memory, (embedded, begins))
        return self.readout(memories), memories

    def step(self, memory: Array, observation: Array, begins: Array) -> tuple[Array, Array]:
        """One moment of it: `[N, ...]`."""
        memory, _ = self.cell(_forget(memory, begins), self._embed(observation))
        return self.readout(memory), memory

    def _embed(self, observations: Array) -> Array:
        flat = observations.reshape(*observations.shape[: observations.ndim - self.axes], -1)
        return nn.tanh(self.embedding(flat))


def _forget(memory: Array, begins: Array) -> Array:
    """Nothing is remembered where an episode begins."""
    return jnp.where(begins[..., None], 0, memory)


@dataclass(frozen=True)
class RecurrentPolicy:
    """A network with a memory, as pure functions of its parameters: `apply` over sequences for learning, `start` and `step`
    for acting. `T` time, `N` sequences side by side, `H` units, `O` outputs.

    Reference: Cho et al. 2014, arXiv:1406.1078 (the gated recurrent unit).
    """

    outputs: int
    """Those that depend on observations."""
    shape: tuple[int, ...]
    """Of an observation; it is flattened."""
    width: int = 64
    """H."""
    gain: float = 1.0
    """Of the last layer: 0.01 for a policy that begins near uniform, 1 for values."""
    constants: int = 0
    """Outputs that are parameters themselves, as the log standard deviations of a Gaussian policy; O counts them."""

    @property
    def _network(self) -> _Recurrent:
        return _Recurrent(self.outputs, len(self.shape), self.width, self.gain, self.constants)

    def init(self, key: Key) -> Params:
        """Random parameters: a nested dict of float32 arrays."""
        observations = jnp.zeros((1, 1, *self.shape))
        return self._network.init(key, self.start(1), observations, jnp.ones((1, 1), bool))["params"]

    def start(self, count: int) -> Array:
        """The memory of `count` sequences before anything was seen, `[count, H]`."""
        return jnp.zeros((count, self.width))

    def step(self, params: Params, memory: Array, observation: Array, begins: Array) -> tuple[Array, Array]:
        """Outputs `[N, O]` of one moment, and the memory `[N, H]` after it.

        Args:
          params: as `init` gives them.
          memory: from before, `[N, H]`.
          observation: `[N, *shape]`.
          begins: bool `[N]`: an episode begins with this observation, and the memory of the last one is dropped.
        """
        return self._call(params, memory, observation, begins, method="step")

    def apply(self, params: Params, memory: Array, observations: Array, begins: Array) -> tuple[Array, Array]:
        """Outputs `[T, N, O]` of whole sequences, and the memories `[T, N, H]` after each moment: what `step` gives one by one.

        Args:
          params: as `init` gives them.
          memory: from before the first observation, `[N, H]`.
          observations: `[T, N, *shape]`.
          begins: bool `[T, N]`: an episode begins here.
        """
        return self._call(params, memory, observations, begins, method="__call__")

    def _call(self, params: Params, *args: Array, method: str) -> Any:
        return self._network.apply({"params": params}, *args, method=method)
