"""Optimizers: Muon for matrices, AdamW for the rest, QK-clip, schedules, and the parameter table."""

from lichen.optim import recipes, schedule
from lichen.optim.muon import Muon
from lichen.optim.qk_clip import qk_clip
from lichen.optim.recipes import OptimizerRecipe
from lichen.optim.table import Override, ParameterTable, parameter_table

__all__ = [
    "Muon",
    "OptimizerRecipe",
    "Override",
    "ParameterTable",
    "parameter_table",
    "qk_clip",
    "recipes",
    "schedule",
]
