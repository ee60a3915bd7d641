"""Recipes: fine-tunes that fit a model to a technique. One file a recipe; base.py has what a recipe is."""

from __future__ import annotations

import importlib

from russet.converters.recipes.base import Recipe

# name -> the module of this folder and the class in it
RECIPES = {
    "control": ("control", "Control"),
    "relufy": ("relufy", "Relufy"),
    "share_kv": ("share_kv", "ShareKV"),
    "combined": ("combined", "Combined"),
    "qat2": ("qat2", "QAT2"),
    "prune": ("prune", "Prune"),
    "kv_predictor": ("kv_predictor", "KVPredictor"),
}


def recipe_class(name: str) -> type[Recipe]:
    """The class of a recipe in `RECIPES`."""
    module, attribute = RECIPES[name]
    return getattr(importlib.import_module(f"russet.converters.recipes.{module}"), attribute)
