"""One reward on a few completions."""

from jaxrl4lm.data import rewards


def call(reward, name, prompts, completions, columns):
    """Its scores."""
    batch = rewards.Batch(prompts, completions, [[] for _ in completions], columns)
    return rewards.judge({name: reward}, batch)[0].tolist()
