"""One loop around everything that learns: stages, and `fit`.

A stage is a record of functions; a constructor joins data, a policy and a pure update to one. A new trainer is a pure
update and a constructor: `fit` is never edited for it. Constructors load on first use, so that `fit` alone needs no
language model.
"""

import importlib
from typing import Any

from jaxrl4lm.training.loop import Run, fit
from jaxrl4lm.training.stage import Progress, Report, Sample, Stage, StepFailed

_CONSTRUCTORS = {
    "CompletionLog": "completion_table",
    "Evaluation": "evaluation",
    "JudgementBatches": "judgements",
    "TextBatches": "texts",
    "agent": "agent_stage",
    "distillation": "distillation_stage",
    "draw_candidates": "candidates",
    "evaluate_distillation": "distillation_stage",
    "evaluate_head": "head_stage",
    "evaluate_preferences": "preference_stage",
    "ModelReward": "model_reward",
    "evaluate_prompts": "evaluation",
    "evaluate_task": "evaluation",
    "evaluate_texts": "evaluation",
    "freeze": "head_stage",
    "head": "head_stage",
    "init_parameters": "head_stage",
    "keep_best": "candidates",
    "load_critic": "model_reward",
    "prepare_judgements": "judgements",
    "prepare_labelled": "labelled",
    "prepare_prompted": "prompted",
    "prepare_texts": "texts",
    "preference": "preference_stage",
    "reinforcement": "reinforcement_stage",
    "reward_model": "reward_stage",
    "start_agents": "agent_stage",
    "supervised": "supervised_stage",
    "with_card": "language_stage",
}

__all__ = ["Progress", "Report", "Run", "Sample", "Stage", "StepFailed", "fit", *_CONSTRUCTORS]


def __getattr__(name: str) -> Any:
    if name in _CONSTRUCTORS:
        return getattr(importlib.import_module(f"{__name__}.{_CONSTRUCTORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
