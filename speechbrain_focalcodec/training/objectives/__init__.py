"""Objectives: terms of a stage's loss, listed in its YAML."""

from speechbrain_focalcodec.training.objectives.adversarial import Adversarial
from speechbrain_focalcodec.training.objectives.distillation import (
    LayerDistillation,
)
from speechbrain_focalcodec.training.objectives.entropy import Entropy
from speechbrain_focalcodec.training.objectives.features import FeatureError
from speechbrain_focalcodec.training.objectives.gaps import GapFilling
from speechbrain_focalcodec.training.objectives.objective import Objective
from speechbrain_focalcodec.training.objectives.position import PositionError
from speechbrain_focalcodec.training.objectives.waveform import WaveformLosses

__all__ = [
    "Adversarial",
    "Entropy",
    "FeatureError",
    "GapFilling",
    "LayerDistillation",
    "Objective",
    "PositionError",
    "WaveformLosses",
]
