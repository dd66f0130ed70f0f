"""How good predicted preferences are on pairs not trained on: accuracy, log loss, Brier score, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.special import expit

from diffalign.rewards.agreement import Comparisons, Estimate, accuracies

Floats = NDArray[np.float64]
BINS = 10  # of equal width over confidences from 1/2 to 1


def bins(prob: Floats, confidence: Floats) -> list[dict[str, float]]:
    """Return count, mean confidence and share that came true of every bin of predictions that is not empty.

    `confidence` (P,) in [1/2, 1] is the predicted chance of the image that is predicted to win, `prob` (P,) the label: the share of
    people, in [0, 1], who preferred it. A bin holds its lower edge; the last one both.
    """
    edges = 0.5 + np.arange(BINS + 1) / (2 * BINS)
    place = np.minimum(np.searchsorted(edges, confidence, side="right"), BINS) - 1
    rows = []
    for number in range(BINS):
        own = place == number
        if own.any():
            ends = {"low": float(edges[number]), "high": float(edges[number + 1])}
            rows.append(ends | {"pairs": int(own.sum()), "confidence": float(confidence[own].mean()), "right": float(prob[own].mean())})
    return rows


def calibration(margin: Floats, prob: Floats, prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return what predicted logits say of labels, as plain values.

    `margin` (P,) is the logit of preferring the first image, `prob` (P,) the label in [0, 1], a tie 1/2; P >= 1. The accuracy is over
    strict pairs, equal rewards half right, with a 95 % bootstrap interval by prompt, None where no pair is strict. Log loss, in nats, and
    Brier score are of all pairs. The expected calibration error (1706.04599) is the mean over pairs of |confidence - share that came
    true| of their bin: `BINS` of equal width from 1/2 to 1.
    """
    chance = expit(margin)
    log_loss = prob * np.logaddexp(0.0, -margin) + (1.0 - prob) * np.logaddexp(0.0, margin)
    table = bins(np.where(margin >= 0.0, prob, 1.0 - prob), np.maximum(chance, 1.0 - chance))
    _, group = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    right = accuracies(Comparisons(group, np.sign(prob - 0.5), margin), seed=seed)["ties_dropped"]
    estimate = right if isinstance(right, Estimate) else None
    return {
        "pairs": len(margin),
        "prompts": len(set(prompts)),
        "ties": int((prob == 0.5).sum()),
        "accuracy": estimate and estimate.value,
        "accuracy_ci95": [estimate.low, estimate.high] if estimate else None,
        "log_loss": float(log_loss.mean()),
        "brier": float(((chance - prob) ** 2).mean()),
        "calibration_error": float(sum(b["pairs"] * abs(b["confidence"] - b["right"]) for b in table) / len(margin)),
        "bins": table,
    }


def in_words(facts: dict[str, Any]) -> str:
    """Return what `calibration` says, as a line."""
    low, high = facts["accuracy_ci95"] or (None, None)
    span = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
    right = "no strict pair" if facts["accuracy"] is None else f"accuracy {facts['accuracy']:.3f}{span}"
    return (
        f"{facts['pairs']} held-out pairs of {facts['prompts']} prompts: {right}, log loss {facts['log_loss']:.3f} (chance 0.693), "
        f"Brier score {facts['brier']:.3f} (chance 0.250), calibration error {facts['calibration_error']:.3f} ({BINS} bins)"
    )


def reliability(table: Sequence[dict[str, float]]) -> Image.Image:
    """Return a picture of `bins`: bars are the share that came true, dots the mean confidence, the line is where both agree."""
    side, edge = 320, 40
    image = Image.new("RGB", (side + 2 * edge, side + 2 * edge), "white")
    pen = ImageDraw.Draw(image)

    def at(confidence: float, share: float) -> tuple[float, float]:
        return edge + (confidence - 0.5) * 2 * side, edge + (1.0 - share) * side

    most = max(b["pairs"] for b in table)
    for b in table:
        pale = round(225 - 120 * b["pairs"] / most)  # bins of few pairs are pale
        (left, top), (right, bottom) = at(b["low"], b["right"]), at(b["high"], 0.0)
        pen.rectangle((left + 1, top, right - 1, bottom), fill=(pale, pale, 235))
        pen.text((left + 4, bottom - 14), f"{b['pairs']:.0f}", fill=(60, 60, 60))
    pen.line([at(0.5, 0.5), at(1.0, 1.0)], fill=(150, 150, 150))
    for b in table:
        x, y = at(b["confidence"], b["confidence"])
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(200, 60, 30))
    pen.rectangle((edge, edge, edge + side, edge + side), outline=(60, 60, 60))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.text((8, at(0.5, share)[1] - 6), f"{share:.2f}", fill=(60, 60, 60))
    for confidence in (0.5, 0.75, 1.0):
        pen.text((at(confidence, 0.0)[0] - 12, edge + side + 6), f"{confidence:.2f}", fill=(60, 60, 60))
    pen.text((edge, 12), "share that came true, by confidence (pairs in each bin)", fill=(60, 60, 60))
    return image
