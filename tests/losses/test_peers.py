"""Parity with rlax, optax and TRL where they compute the same thing; where they do not, what we do instead.

`PARITY` lists (ours, theirs) as closures over the same random arrays; differences are in float32.
"""

import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl4lm import advantages, losses, reduce, returns
from tests.selection import slow_but

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    rlax = pytest.importorskip("rlax")
    optax = pytest.importorskip("optax")
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

rng = np.random.default_rng(0)
T, A = 20, 5
F = {name: rng.normal(size=T).astype(np.float32) for name in "rvabcd"}
Q, NEXT_Q, SELECT = rng.normal(size=(3, T, A)).astype(np.float32)
PROBS = rng.dirichlet(np.ones(A), size=T).astype(np.float32)
ACTIONS, NEXT_ACTIONS = rng.integers(0, A, (2, T))
TERMINATED = rng.random(T) < 0.2
DISCOUNTS = (0.95 * ~TERMINATED).astype(np.float32)
VALUES = rng.normal(size=T + 1).astype(np.float32)
LOG_RHO = (0.5 * rng.normal(size=T)).astype(np.float32)
NO = np.zeros(T, bool)
LP = (-1 - rng.random((6, T))).astype(np.float32)
STEPS = (F["r"], VALUES[:-1], VALUES[1:], TERMINATED)


def gae():
    return returns.generalized_advantage_estimation(*STEPS, discount=0.95, gae_lambda=0.8)[0]


def vtrace(which):
    out = returns.vtrace(*STEPS, log_ratios=LOG_RHO, discount=0.95, lambda_=0.8, clip_rho=1.3)
    return (out[0], out[1] - VALUES[:-1])[which]


def rlax_vtrace(which):
    rho = jnp.exp(LOG_RHO)
    out = rlax.vtrace_td_error_and_advantage(
        VALUES[:-1],
        VALUES[1:],
        F["r"],
        DISCOUNTS,
        rho,
        0.8,
        clip_rho_threshold=1.3,
        clip_pg_rho_threshold=1.3,
    )
    return (out.pg_advantage, out.errors)[which]


def t(x):
    return torch.as_tensor(np.asarray(x))


def trl_self(**fields):
    return types.SimpleNamespace(accelerator=types.SimpleNamespace(device="cpu"), **fields)


def cpo_loss(**fields):
    fields = {"alpha": 0.0, "beta": 0.5, "label_smoothing": 0.0} | fields
    return CPOTrainer.cpo_loss(trl_self(**fields), t(LP[0]), t(LP[1]))[0]


def logsigmoid(x):
    return torch.nn.functional.logsigmoid(x)


class Published:
    """The formulas of TRL's DPO trainer, by the name of its `loss_type`."""

    beta, smoothing = 0.5, 0.1
    chosen, rejected = t(LP[0]) - t(LP[2]), t(LP[1]) - t(LP[3])
    delta = chosen - rejected
    lengths = t(rng.integers(1, 9, (2, T)))
    sigmoid = -logsigmoid(beta * delta)
    hinge = torch.relu(1 - beta * delta)
    ipo = (chosen / lengths[0] - rejected / lengths[1] - 1 / (2 * beta)) ** 2
    exo_pair = torch.sigmoid(beta * delta) * (
        logsigmoid(beta * delta) - np.log1p(-smoothing)
    ) + torch.sigmoid(-beta * delta) * (logsigmoid(-beta * delta) - np.log(smoothing))
    nca_pair = (
        -logsigmoid(beta * chosen) - 0.5 * logsigmoid(-beta * chosen) - 0.5 * logsigmoid(-beta * rejected)
    )
    robust = (-(1 - smoothing) * logsigmoid(beta * delta) + smoothing * logsigmoid(-beta * delta)) / (
        1 - 2 * smoothing
    )
    sppo_hard = (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    apo_zero = 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    apo_down = torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * delta)
    ratio = torch.exp(t(LP[0]) - t(LP[1]))
    advantages = t(F["a"])
    grpo = -torch.min(ratio * advantages, torch.clamp(ratio, 0.8, 1.28) * advantages)
    grpo_delta = -torch.min(
        torch.clamp(ratio, max=1.4) * advantages, torch.clamp(ratio, 0.8, 1.28) * advantages
    )
    cispo = -torch.clamp(ratio, max=1.5) * advantages * t(LP[0])
    tau = torch.where(advantages > 0, 1.0, 1.05)
    sapo = -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages
    kl = torch.exp(t(LP[1] - LP[0])) - t(LP[1] - LP[0]) - 1


PAIRS, BETA = tuple(LP[:4]), {"beta": 0.5}
POLICY = (LP[0], LP[1], F["a"])
SMOOTHED = BETA | {"label_smoothing": 0.1}
LENGTHS = {"chosen_lengths": Published.lengths[0].numpy(), "rejected_lengths": Published.lengths[1].numpy()}
INTEGER_CE = optax.softmax_cross_entropy_with_integer_labels

PARITY = {
    "rlax.truncated_generalized_advantage_estimation": (
        gae,
        lambda: rlax.truncated_generalized_advantage_estimation(F["r"], DISCOUNTS, 0.8, VALUES),
    ),
    "rlax.lambda_returns": (
        lambda: returns.lambda_returns(*STEPS, discount=0.95, lambda_=0.8),
        lambda: rlax.lambda_returns(F["r"], DISCOUNTS, VALUES[1:], 0.8),
    ),
    "rlax.discounted_returns": (
        lambda: returns.discounted_returns(F["r"], TERMINATED, False, VALUES[1:], discount=0.95),
        lambda: rlax.discounted_returns(F["r"], DISCOUNTS, VALUES[1:]),
    ),
    "rlax.n_step_bootstrapped_returns": (
        lambda: returns.n_step_returns(*STEPS, n=3, discount=0.95),
        lambda: rlax.n_step_bootstrapped_returns(F["r"], DISCOUNTS, VALUES[1:], 3),
    ),
    "rlax.vtrace (advantages)": (lambda: vtrace(0), lambda: rlax_vtrace(0)),
    "rlax.vtrace (errors)": (lambda: vtrace(1), lambda: rlax_vtrace(1)),
    "rlax.td_learning": (
        lambda: losses.td_error(F["v"], F["r"], F["a"], TERMINATED, discount=0.95),
        lambda: jax.vmap(rlax.td_learning)(F["v"], F["r"], DISCOUNTS, F["a"]),
    ),
    "rlax.sarsa": (
        lambda: losses.sarsa_error(Q, ACTIONS, F["r"], NEXT_Q, NEXT_ACTIONS, TERMINATED, discount=0.95),
        lambda: jax.vmap(rlax.sarsa)(Q, ACTIONS, F["r"], DISCOUNTS, NEXT_Q, NEXT_ACTIONS),
    ),
    "rlax.expected_sarsa": (
        lambda: losses.expected_sarsa_error(Q, ACTIONS, F["r"], NEXT_Q, PROBS, TERMINATED, discount=0.95),
        lambda: jax.vmap(rlax.expected_sarsa)(Q, ACTIONS, F["r"], DISCOUNTS, NEXT_Q, PROBS),
    ),
    "rlax.q_learning": (
        lambda: losses.q_learning_error(Q, ACTIONS, F["r"], NEXT_Q, TERMINATED, discount=0.95),
        lambda: jax.vmap(rlax.q_learning)(Q, ACTIONS, F["r"], DISCOUNTS, NEXT_Q),
    ),
    "rlax.double_q_learning": (
        lambda: losses.double_q_learning_error(Q, ACTIONS, F["r"], NEXT_Q, SELECT, TERMINATED, discount=0.95),
        lambda: jax.vmap(rlax.double_q_learning)(Q, ACTIONS, F["r"], DISCOUNTS, NEXT_Q, SELECT),
    ),
    "rlax.huber_loss": (
        lambda: losses.huber_value(F["v"], F["a"], delta=0.7),
        lambda: rlax.huber_loss(F["v"] - F["a"], 0.7),
    ),
    "rlax.clipped_surrogate_pg_loss": (
        lambda: losses.ppo_clip(LP[0], LP[1], F["a"], clip_eps=0.2).mean(),
        lambda: rlax.clipped_surrogate_pg_loss(jnp.exp(LP[0] - LP[1]), F["a"], 0.2),
    ),
    "optax.softmax_cross_entropy_with_integer_labels": (
        lambda: losses.cross_entropy(Q, ACTIONS),
        lambda: INTEGER_CE(jnp.asarray(Q), ACTIONS),
    ),
    "optax.smooth_labels": (
        lambda: losses.cross_entropy(Q, ACTIONS, label_smoothing=0.1),
        lambda: optax.softmax_cross_entropy(Q, optax.smooth_labels(jax.nn.one_hot(ACTIONS, A), 0.1)),
    ),
    "optax.kl_divergence": (
        lambda: losses.forward_distillation(Q, np.log(PROBS)),
        lambda: optax.losses.kl_divergence(jax.nn.log_softmax(Q), PROBS),
    ),
    "TRL dpo": (lambda: losses.dpo(*PAIRS, **BETA), lambda: Published.sigmoid),
    "TRL dpo robust": (lambda: losses.robust_dpo(*PAIRS, **SMOOTHED), lambda: Published.robust),
    "TRL dpo ipo": (lambda: losses.ipo(*PAIRS, **BETA, **LENGTHS), lambda: Published.ipo),
    "TRL dpo hinge": (lambda: losses.hinge(*PAIRS, **BETA), lambda: Published.hinge),
    "TRL dpo exo_pair": (lambda: losses.exo(*PAIRS, **SMOOTHED), lambda: Published.exo_pair),
    "TRL dpo nca_pair": (lambda: losses.nca(*PAIRS, **BETA), lambda: Published.nca_pair),
    "TRL dpo sppo_hard": (lambda: losses.sppo(*PAIRS, **BETA), lambda: Published.sppo_hard),
    "TRL dpo apo_zero": (lambda: losses.apo_zero(*PAIRS, **BETA), lambda: Published.apo_zero),
    "TRL dpo apo_down": (lambda: losses.apo_down(*PAIRS, **BETA), lambda: Published.apo_down),
    "TRL CPOTrainer.cpo_loss": (
        lambda: losses.cpo(LP[0], LP[1], nll_coef=0.0, **BETA),
        lambda: cpo_loss(loss_type="sigmoid"),
    ),
    "TRL CPOTrainer.cpo_loss, simpo": (
        lambda: losses.simpo(LP[0], LP[1], beta=2.0, gamma=0.5),
        lambda: cpo_loss(loss_type="simpo", beta=2.0, simpo_gamma=0.5),
    ),
    "TRL ORPOTrainer.odds_ratio_loss": (
        lambda: -losses.orpo(LP[0], LP[1], odds_coef=0.3) - LP[0],
        lambda: ORPOTrainer.odds_ratio_loss(trl_self(beta=0.3), t(LP[0]), t(LP[1]))[0],
    ),
    "TRL GKDTrainer.generalized_jsd_loss": (
        lambda: losses.generalized_jsd(Q, NEXT_Q, beta=0.3, temperature=1.5),
        lambda: GKDTrainer.generalized_jsd_loss(
            t(Q), t(NEXT_Q), beta=0.3, temperature=1.5, reduction="none"
        ).sum(-1),
    ),
    "TRL grpo": (
        lambda: losses.ppo_clip(*POLICY, clip_eps=0.2, clip_eps_high=0.28),
        lambda: Published.grpo,
    ),
    "TRL grpo, two-sided": (
        lambda: losses.ppo_clip(*POLICY, clip_eps=0.2, clip_eps_high=0.28, dual_clip=1.4),
        lambda: Published.grpo_delta,
    ),
    "TRL cispo (epsilon_high=1.5)": (
        lambda: losses.cispo(*POLICY, clip_eps_high=0.5),
        lambda: Published.cispo,
    ),
    "TRL sapo": (lambda: losses.sapo(*POLICY), lambda: Published.sapo),
    "TRL kl of grpo": (lambda: losses.kl.k3(LP[0], LP[1]), lambda: Published.kl),
}


@pytest.mark.parametrize("ours, theirs", slow_but(PARITY.values(), len(PARITY) // 2), ids=PARITY)
def test_parity(ours, theirs):
    with jax.numpy_rank_promotion("allow"):  # peers promote ranks
        expected = np.asarray(theirs())
    np.testing.assert_allclose(ours(), expected, rtol=1e-5, atol=2e-6)


def test_rlax_reads_what_follows_a_termination():
    """A termination is a discount of 0 there, and 0 · nan is nan; here the value after it is not read."""
    ends, after = jnp.array([1.0]), jnp.array([jnp.nan])
    with jax.numpy_rank_promotion("allow"):
        theirs = rlax.td_learning(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(0.0), jnp.float32(jnp.nan))
    assert np.isnan(theirs)
    assert losses.td_error(jnp.zeros(1), jnp.ones(1), after, ends, discount=0.9) == 1


def test_rlax_cannot_tell_a_time_limit_from_a_death():
    """A discount of 0 ends an episode but also its bootstrap; one of γ bootstraps but lets λ run on."""
    truncated = np.arange(T) == 7
    after = np.where(truncated, 9.0, VALUES[1:]).astype(np.float32)
    ours, _ = returns.generalized_advantage_estimation(
        F["r"], VALUES[:-1], after, NO, truncated, discount=0.95, gae_lambda=0.8
    )
    np.testing.assert_allclose(ours[7], F["r"][7] + 0.95 * 9.0 - VALUES[7], rtol=1e-5)
    for discounts in (0.95 * np.ones(T, np.float32), (0.95 * ~truncated).astype(np.float32)):
        theirs = rlax.truncated_generalized_advantage_estimation(F["r"], discounts, 0.8, VALUES)
        assert abs(theirs[7] - ours[7]) > 1


@pytest.mark.parametrize("token", [-1, -100, A])
def test_optax_takes_minus_one_for_the_last_token(token):
    """A label that counts and is no token is an error: nan, where optax counts from the end or wraps."""
    logits, tokens = jnp.asarray(Q[:1]), jnp.array([token])
    if token == -1:
        with jax.numpy_rank_promotion("allow"):
            assert INTEGER_CE(logits, tokens)[0] == INTEGER_CE(logits, jnp.array([A - 1]))[0]
    assert np.isnan(losses.cross_entropy(logits, tokens)).all()
    assert losses.cross_entropy(logits, tokens, mask=tokens >= 0)[0] == 0 or token == A


def test_rlax_averages_over_padding():
    """Its losses are means over T; a token of padding makes all others count less."""
    ratios, mask = jnp.exp(LP[0] - LP[1]), jnp.arange(T) < T // 2
    with jax.numpy_rank_promotion("allow"):
        theirs = rlax.clipped_surrogate_pg_loss(ratios, jnp.where(mask, F["a"], 0), 0.2)
    ours = reduce.token_mean(losses.ppo_clip(LP[0], LP[1], F["a"], clip_eps=0.2, mask=mask), mask)
    np.testing.assert_allclose(ours, 2 * theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "beta, plain", [(0.0, losses.forward_distillation), (1.0, losses.reverse_distillation)]
)
def test_trl_swaps_the_divergence_at_the_ends(beta, plain):
    """The generalised JSD is 0 at β = 0 and 1; TRL returns the plain KL there, ours has a function for it."""
    theirs = GKDTrainer.generalized_jsd_loss(t(Q), t(NEXT_Q), beta=beta, reduction="none").sum(-1)
    np.testing.assert_allclose(plain(Q, NEXT_Q), theirs, rtol=1e-5, atol=1e-6)
    near = losses.generalized_jsd(Q, NEXT_Q, beta=abs(beta - 1e-3))
    np.testing.assert_allclose(1e3 * near, theirs, rtol=0.05, atol=1e-3)


def test_trl_normalises_groups_without_information():
    """Eight rewards of 0.7 and an ε of 1e-9 (TRL's 1e-4 makes it smaller, not 0): here exactly 0."""
    rewards = torch.full((1, 8), 0.7)
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-9)
    assert theirs.abs().max() > 0.5
    assert (advantages.group_normalized(rewards.numpy(), eps=1e-9) == 0).all()


def test_trl_k3_loses_its_digits():
    """exp(x) − x − 1 in float32 near the reference is rounding noise, and negative at times; expm1 is not."""
    x = np.linspace(-3e-4, 3e-4, 101).astype(np.float32)
    naive = (torch.exp(t(-x)) - t(-x) - 1).numpy()
    ours = np.asarray(losses.kl.k3(jnp.asarray(x), jnp.zeros(101)))
    exact = np.expm1(-x.astype(float)) + x
    assert naive.min() < 0
    assert ours.min() >= 0
    assert np.abs(ours - exact).max() < 0.02 * np.abs(naive - exact).max()
