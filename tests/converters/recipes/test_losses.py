"""The head's loss and its gradient equal those of plain operations."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from russet.converters.recipes import losses


@pytest.fixture
def inputs() -> dict[str, mx.array]:
    keys = mx.random.split(mx.random.key(0), 5)
    return {
        "rows": mx.random.normal((10, 8), key=keys[0]),
        "head": mx.random.normal((13, 8), key=keys[1]),
        "labels": mx.random.randint(0, 13, (10,), key=keys[2]),
        "their_rows": mx.random.normal((10, 6), key=keys[3]),
        "their_head": mx.random.normal((13, 6), key=keys[4]),
    }


@pytest.mark.parametrize(
    ("kl", "ce", "taught"), [(1.0, 0.0, True), (0.7, 0.4, True), (0.0, 1.0, True), (0.0, 1.0, False)]
)
def test_it_equals_plain_operations(
    inputs: dict[str, mx.array], kl: float, ce: float, taught: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ROWS", 4)
    labels, teacher = inputs["labels"], (inputs["their_rows"], inputs["their_head"]) if taught else None

    def plain(rows: mx.array, head: mx.array) -> mx.array:
        ours = nn.log_softmax(rows @ head.T)
        total = ce * -mx.take_along_axis(ours, labels[:, None], axis=-1).mean()
        if teacher is not None:
            theirs = nn.log_softmax(teacher[0] @ teacher[1].T)
            total = total + kl * (mx.exp(theirs) * (theirs - ours)).sum(-1).mean()
        return total

    def chunked(rows: mx.array, head: mx.array) -> mx.array:
        return losses.through_head(rows, head, labels, teacher, kl, ce)[0]

    wanted, by = mx.value_and_grad(plain, argnums=(0, 1))(inputs["rows"], inputs["head"])
    found, ours = mx.value_and_grad(chunked, argnums=(0, 1))(inputs["rows"], inputs["head"])
    np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-5)
    for a, b in zip(ours, by, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-6)


def test_the_terms_are_unweighted(inputs: dict[str, mx.array]) -> None:
    teacher = inputs["rows"], inputs["head"]
    total, terms = losses.through_head(inputs["rows"], inputs["head"], inputs["labels"], teacher, 1.0, 0.0)
    assert abs(total.item()) < 1e-6 and abs(terms[0].item()) < 1e-6 and terms[1].item() > 1


def test_hidden_states_are_measured_against_the_teachers_own_size() -> None:
    ones = [mx.ones((1, 2, 4)), 2 * mx.ones((1, 2, 4))]
    assert losses.hidden_loss([x * 1.5 for x in ones], ones).item() == pytest.approx(0.25)
