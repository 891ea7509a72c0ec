"""Several documents in one row: each is read as if it stood alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm.models import LanguagePolicy, Rope, TransformerConfig
from tests.selection import slow_but

SEGMENTS = np.array([[1] * 5 + [2] + [3] * 7 + [0] * 3, [0] * 2 + [1] * 9 + [2] * 3 + [0] * 2])
TOKENS = np.random.default_rng(0).integers(0, 31, SEGMENTS.shape)
LONG = Rope(kind="longrope", original_context=6, short_factors=(1.0,) * 4, long_factors=(4.0,) * 4)
STYLES = {
    "rotary": {},
    "learned positions": {"rope_theta": None},
    "sliding window": {"windows": (4, 4)},
    "window in some layers, scanned": {"windows": (4, None), "scan": True},
    "scanned": {"scan": True},
    "longrope": {"ropes": (LONG, LONG)},
    "recomputed": {"remat": "full"},
}


def build(style):
    config = TransformerConfig(31, layers=2, width=16, heads=2, context=16, **STYLES[style])
    policy = LanguagePolicy(config)
    return policy, jax.jit(policy.init)(jax.random.key(1))


def read(policy, params, tokens, segments):
    return jax.jit(policy.hidden)(params, tokens, segments > 0, segments)


@pytest.mark.parametrize("style", slow_but(STYLES, ["window in some layers, scanned"]))
def test_a_document_is_read_as_if_it_stood_alone(style):
    policy, params = build(style)
    packed = np.asarray(read(policy, params, TOKENS, SEGMENTS))
    for row, segments in enumerate(SEGMENTS):
        for number in range(1, segments.max() + 1):
            here = segments == number
            # Padded to one shape: one program.
            padded = np.zeros((1, 16), int)
            padded[0, : here.sum()] = TOKENS[row, here]
            alone = jax.jit(policy.hidden)(params, padded, np.arange(16)[None] < here.sum())[0]
            np.testing.assert_allclose(packed[row, here], alone[: here.sum()], atol=2e-5)


def test_neighbours_do_not_see_a_change():
    policy, params = build("sliding window")
    before = np.asarray(read(policy, params, TOKENS, SEGMENTS))
    changed = np.where(SEGMENTS == 1, (TOKENS + 1) % 31, TOKENS)
    after = np.asarray(read(policy, params, changed, SEGMENTS))
    np.testing.assert_array_equal(after[SEGMENTS > 1], before[SEGMENTS > 1])
    assert (after[SEGMENTS == 1] != before[SEGMENTS == 1]).any(-1).all()

    def of_second(embedding):
        hidden = policy.hidden({**params, "embedding": embedding}, jnp.arange(16)[None], None, SEGMENTS[:1])
        return hidden[0, 5:13].sum()

    reached = np.abs(jax.jit(jax.grad(of_second))(params["embedding"])).sum(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(reached), np.arange(5, 13))


def test_what_does_not_fit():
    policy, params = build("learned positions")
    long = np.zeros((1, 40), int)
    with pytest.raises(ValueError, match="30 tokens do not fit the table of context 16"):
        policy.hidden(params, long, None, np.repeat([[1, 2]], [10, 30], axis=1))
    assert policy.hidden(params, long, None, np.repeat([[1, 2, 3]], [16, 8, 16], axis=1)).shape == (1, 40, 16)
    with pytest.raises(ValueError, match="mask of tokens has shape"):
        policy.hidden(params, long, None, np.ones((1, 3), int))
