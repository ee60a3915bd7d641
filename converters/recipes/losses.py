"""Losses of fine-tuning: KL from a teacher's logits and cross-entropy through the head, and hidden states.

Logits of a batch are gigabytes, so the head runs a few thousand rows at a time and its gradient is made on the way, as
in cut cross-entropy (Wijmans et al. 2024, arXiv 2411.09009): each row's logits are computed once and never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from russet.converters.recipes.forward import Rows, head_of
from russet.models.decoder import Decoder

if TYPE_CHECKING:
    from russet.converters.recipes.base import Teacher

ROWS = 4096
"""Rows whose logits exist at a time."""


def head_loss(
    rows: Rows, decoder: Decoder, labels: mx.array, teacher: Teacher | None, kl: float = 1.0, ce: float = 0.0
) -> tuple[mx.array, dict[str, mx.array]]:
    """`kl` KL(teacher || student) + `ce` cross-entropy, means over rows in nats, and both by themselves.

    Without a teacher only the cross-entropy is there. Gradients flow into the rows and the head, not into the teacher.
    """
    flat, head = _flat(rows.final), head_of(decoder)
    if teacher is None:
        total, terms = through_head(flat, head, labels.reshape(-1), kl=0.0, ce=ce)
        return total, {"ce": terms[1]}
    total, terms = through_head(flat, head, labels.reshape(-1), (_flat(teacher.rows.final), teacher.head), kl, ce)
    return total, {"kl": terms[0], "ce": terms[1]}


def through_head(
    rows: mx.array,
    head: mx.array,
    labels: mx.array,
    teacher: tuple[mx.array, mx.array] | None = None,
    kl: float = 0.0,
    ce: float = 1.0,
) -> tuple[mx.array, mx.array]:
    """The weighted loss of rows [n, hidden] through a head [vocab, hidden], and [KL, cross-entropy] unweighted.

    `teacher` is its rows [n, hidden] and its head. The loss is differentiable in `rows` and `head`.
    """
    # What it reads comes in as arguments: MLX does not compile a custom function that closes over traced arrays.
    taught = [] if teacher is None else list(teacher)
    total, means, _, _ = _loss(kl, ce)(rows, head, labels, *taught)
    return total, mx.stop_gradient(means)


def _loss(kl: float, ce: float) -> Callable[..., list[mx.array]]:
    """(rows, head, labels, teacher's rows and head) -> [loss, means, gradients by rows and by head]."""

    @mx.custom_function
    def loss(rows: mx.array, head: mx.array, labels: mx.array, *teacher: mx.array) -> list[mx.array]:
        sums, by_rows, by_head = mx.zeros((2,)), [], mx.zeros(head.shape)
        for start in range(0, rows.shape[0], ROWS):
            part = slice(start, start + ROWS)
            taught = teacher[0][part] @ teacher[1].T if teacher else None
            chunk, by_logits = _chunk(rows[part] @ head.T, labels[part], taught, kl, ce)
            sums = sums + chunk
            by_logits = by_logits.astype(head.dtype)
            by_rows.append(by_logits @ head)
            by_head = by_head + (by_logits.T @ rows[part]).astype(mx.float32)
        means = sums / rows.shape[0]
        total = kl * means[0] + ce * means[1]
        return [total, means, mx.concatenate(by_rows) / rows.shape[0], by_head / rows.shape[0]]

    @loss.vjp
    def backward(primals: tuple[mx.array, ...], cotangents: list[mx.array], outputs: list[mx.array]) -> list[mx.array]:
        by_rows, by_head = ((cotangents[0] * gradient) for gradient in outputs[2:])
        rest = [mx.zeros_like(primal) for primal in primals[2:]]
        return [by_rows.astype(primals[0].dtype), by_head.astype(primals[1].dtype), *rest]

    return loss  # pyright: ignore[reportReturnType]


def _chunk(
    logits: mx.array, labels: mx.array, taught: mx.array | None, kl: float, ce: float
) -> tuple[mx.array, mx.array]:
    """Sums [KL, cross-entropy] over a chunk's rows, and the weighted loss's gradient by its logits [n, vocab]."""
    ours = logits.astype(mx.float32)
    ours = ours - mx.logsumexp(ours, axis=-1, keepdims=True)
    picked = mx.take_along_axis(ours, labels[:, None], axis=-1)
    wanted, divergence = mx.zeros_like(ours), mx.array(0.0)
    if taught is not None:
        theirs = taught.astype(mx.float32)
        theirs = theirs - mx.logsumexp(theirs, axis=-1, keepdims=True)
        divergence = (mx.exp(theirs) * (theirs - ours)).sum()
        wanted = kl * mx.exp(theirs)
    if ce:
        wanted = wanted + ce * (mx.arange(logits.shape[-1])[None] == labels[:, None])
    return mx.stack([divergence, -picked.sum()]), (kl + ce) * mx.exp(ours) - wanted


def hidden_loss(student: list[mx.array], teacher: list[mx.array]) -> mx.array:
    """Squared distance of each layer's output from the teacher's, over the teacher's own square: mean of all rows."""
    distances = []
    for ours, theirs in zip(student, teacher, strict=True):
        theirs = theirs.astype(mx.float32)
        apart = mx.square(ours.astype(mx.float32) - theirs).sum(-1)
        distances.append((apart / mx.square(theirs).sum(-1)).mean())
    return mx.stack(distances).mean()


def _flat(rows: mx.array) -> mx.array:
    return rows.reshape(-1, rows.shape[-1])
