"""The matched-token control: the same tokens, steps and schedule, and no change to the model.

Under the default objective a model that equals its teacher has no gradient, so the control learns the text instead.
"""

from __future__ import annotations

from typing import ClassVar

from russet.converters.recipes.base import Objective, Recipe


class Control(Recipe):
    """The source, trained on as it is."""

    name = "control"
    summary = "train on without a change, on the same tokens: what the other recipes are compared with"
    objective: ClassVar[Objective] = Objective(kl=0.0, ce=1.0)
