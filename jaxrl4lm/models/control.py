"""Small networks for control. Each maps observations `[..., *shape]` to outputs `[..., outputs]`, in float32."""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl4lm.models.orthogonal import orthogonal
from jaxrl4lm.types import Array

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
        x = nn.Conv(self.channels, (3, 3), padding="VALID", kernel_init=orthogonal(GAIN))(observations)
        x = nn.LayerNorm()(x) if self.layer_norm else x
        x = nn.relu(x)
        x = _dense(self.width, GAIN)(x.reshape(*x.shape[:-3], -1))
        x = nn.LayerNorm()(x) if self.layer_norm else x
        return _Readout(self.outputs, self.gain, self.constants)(jax.nn.relu(x))
