"""Formulas of the losses in NumPy, from the papers, and what the stop-gradient estimators are derivatives of."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def at(table, index):
    return np.take_along_axis(table, index[..., None], -1)[..., 0]


def clip_formula(ratio, a, low, high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)


def ppo_formula(lp, old, a, *, clip_eps, clip_eps_high=None, dual_clip=None):
    loss = clip_formula(np.exp(lp - old), a, clip_eps, clip_eps if clip_eps_high is None else clip_eps_high)
    return loss if dual_clip is None else np.where(a < 0, np.minimum(loss, -dual_clip * a), loss)


def quantile_formula(theta, targets, *, kappa):
    n, loss = theta.shape[-1], np.zeros(theta.shape[:-1])
    for i in range(n):
        for j in range(targets.shape[-1]):
            u = targets[..., j] - theta[..., i]
            line = np.abs(u) - kappa / 2
            huber = line if kappa == 0 else np.where(np.abs(u) <= kappa, u**2 / 2 / kappa, line)
            loss += np.abs((2 * i + 1) / (2 * n) - (u < 0)) * huber / targets.shape[-1]
    return loss


def over_sequence(x):
    return np.broadcast_to(x.mean(-1, keepdims=True), x.shape)


def gmpo_formula(lp, old, a, *, clip_eps, clip_eps_high):
    sign = np.sign(a)  # the published form: the pessimistic one of ρ^sign and its clip
    pessimistic = np.minimum(sign * (lp - old), np.where(a < 0, clip_eps, clip_eps_high))
    return -np.exp(over_sequence(sign * pessimistic)) * a


def vespo_gate(log_ratio, a, *, power, decay, negative_power, negative_decay):
    w = np.exp(log_ratio.sum(-1, keepdims=True))
    k, lam = np.where(a >= 0, power, negative_power), np.where(a >= 0, decay, negative_decay)
    return w**k * np.exp(lam * (1 - w))


def vespo_surrogate(at, mask):
    return lambda lp, old, a, **hyper: -vespo_gate((at - old) * mask, a, **hyper) * a * lp


def dppo_formula(lp, old, a, *, threshold):
    moved = np.abs(np.exp(lp) - np.exp(old)) > threshold
    return np.where(moved & (a * (lp - old) > 0), 0, -np.exp(lp - old) * a)


def near_policy_formula(lp, old, a, *, threshold):
    return ((a >= 0) | ((old - lp).mean(-1, keepdims=True) <= threshold)).astype(float)


def cross_entropy_formula(z, y, *, label_smoothing):
    log_p = log_softmax(z)
    return -(1 - label_smoothing) * at(log_p, y) - label_smoothing * log_p.mean(-1)


def jsd_formula(s, t, *, beta, temperature):
    s, t = softmax(s / temperature), softmax(t / temperature)
    m = beta * t + (1 - beta) * s
    return (beta * t * np.log(t / m) + (1 - beta) * s * np.log(s / m)).sum(-1)


def orpo_formula(c, r, *, odds_coef):
    odds = [np.exp(x) / (1 - np.exp(x)) for x in (c, r)]
    return -c - odds_coef * log_sigmoid(np.log(odds[0] / odds[1]))


def kl_formula(p, q):
    return (p * np.log(p / q)).sum(-1)


def nca_formula(c, r, rc, rr, *, beta):
    d, e = beta * (c - rc), beta * (r - rr)
    return -log_sigmoid(d) - 0.5 * log_sigmoid(-d) - 0.5 * log_sigmoid(-e)


def discopop_formula(*pairs, beta, temperature):
    logits = beta * delta(*pairs)
    weight = sigmoid(logits / temperature)
    return (1 - weight) * -log_sigmoid(logits) + weight * np.exp(-logits)


def aot_formula(c, r, rc, rr, *, beta, label_smoothing):
    """The sorted ratios against the reference's sorted, each put back to its pair."""
    order = np.argsort(c - r, -1)
    moved = beta * (np.sort(c - r, -1) - np.sort(rc - rr, -1))
    loss = -(1 - label_smoothing) * log_sigmoid(moved) - label_smoothing * log_sigmoid(-moved)
    return np.take_along_axis(loss, np.argsort(order, -1), -1)


def exo_formula(c, r, rc, rr, *, beta, label_smoothing):
    p = sigmoid(beta * (c - rc - r + rr))
    return p * np.log(p / (1 - label_smoothing)) + (1 - p) * np.log((1 - p) / label_smoothing)


def robust_formula(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * (c - rc - r + rr)
    clean, flipped = -log_sigmoid(x), -log_sigmoid(-x)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def kto_formula(lp, ref, good, z, *, beta, desirable_weight, undesirable_weight):
    d = lp - ref
    desirable = desirable_weight * (1 - sigmoid(beta * (d - z)))
    return np.where(good, desirable, undesirable_weight * (1 - sigmoid(beta * (z - d))))


def delta(c, r, rc, rr):
    return (c - rc) - (r - rr)


def k3_formula(lp, ref):
    return np.exp(ref - lp) - 1 - (ref - lp)


def k2_formula(lp, ref):
    return (lp - ref) ** 2 / 2


def cispo_surrogate(at, mask):
    """The clipped ratio is a weight."""
    return lambda lp, old, a, *, clip_eps, clip_eps_high: (
        -np.clip(np.exp(at - old), 1 - clip_eps, 1 + clip_eps_high) * a * lp
    )


def gspo_token_surrogate(at, mask):
    """The ratio of the sequence is a weight; each token has a ratio to itself."""

    def loss(lp, old, a, *, clip_eps, clip_eps_high):
        mean = np.sum(mask * (at - old), -1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1)
        return clip_formula(np.exp(mean) * np.exp(lp - at), a, clip_eps, clip_eps_high)

    return loss


def sequence_ratio_surrogate(estimator, at, mask):
    """Π π/sg(π) · Σ of the estimator, both factors differentiated."""

    def loss(lp, ref):
        ratio = np.exp(np.sum(mask * (lp - at), -1, keepdims=True))
        return ratio * np.sum(mask * estimator(lp, ref), -1, keepdims=True) + 0 * lp

    return loss


def chunked_formula(h, w, y, *, temperature):
    log_p = log_softmax(h @ w / temperature)
    return at(log_p, y), -(np.exp(log_p) * log_p).sum(-1)


def ends(d, c):
    """Steps after which nothing is added up: flagged, or the last."""
    return d | c | (np.arange(d.shape[-1]) == d.shape[-1] - 1)


def backward(x, decay):
    y, following = np.zeros_like(x), np.zeros(len(x))
    for t in reversed(range(x.shape[-1])):
        y[:, t] = following = x[:, t] + decay[:, t] * following
    return y


def later(x):
    return np.roll(x, -1, axis=-1)


def discounted_formula(r, d, c, n, *, discount):
    return backward(r + discount * (ends(d, c) & ~d) * n, discount * ~ends(d, c))


def lambda_formula(r, v, n, d, c, *, discount, lambda_):
    bootstrap = np.where(ends(d, c), 1, 1 - lambda_) * n * ~d
    return backward(r + discount * bootstrap, discount * lambda_ * ~ends(d, c))


def two_step_formula(r, v, n, d, c, *, discount):
    one_step = r + discount * n * ~d
    return r + discount * np.where(ends(d, c), n * ~d, later(one_step))


def gae_formula(r, v, n, d, c, *, discount, gae_lambda):
    a = backward(r + discount * n * ~d - v, discount * gae_lambda * ~ends(d, c))
    return a, a + v


def vtrace_formula(r, v, n, d, c, log_ratios, *, discount, lambda_, clip_rho, clip_c):
    weights, traces = (np.minimum(np.exp(log_ratios), cap) for cap in (clip_rho, clip_c))
    decay = discount * lambda_ * traces * ~ends(d, c)
    targets = v + backward(weights * (r + discount * n * ~d - v), decay)
    ahead = np.where(ends(d, c), n * ~d, lambda_ * later(targets) + (1 - lambda_) * n * ~d)
    return weights * (r + discount * ahead - v), targets
