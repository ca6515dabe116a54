"""Heads equal their textbook definitions."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from headstart.heads import (
    LOGISTIC_STRENGTHS,
    RIDGE_STRENGTHS,
    Head,
    Kind,
    centroid_scores,
    fit_head,
    logistic_scores,
    ridge_scores,
    solved,
)
from headstart.race import Scorer
from headstart.solvers import Streamed, principal_axes, ridge_by_gram, ridge_by_hat, solve_logistic
from headstart.tasks.classification import softmax
from tests.toys import Floats, Labels, clouds


def standardised(x: Floats) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    variance = wide.var(0)
    return np.asarray((wide - wide.mean(0)) / np.sqrt(variance + variance.mean()) / np.sqrt(x.shape[1]))


def thirds(count: int) -> Labels:
    return np.arange(count) // 4 % 3


@pytest.mark.parametrize(("width", "strength"), [(12, 1e-3), (12, 1e-2), (200, 1e-3), (200, 1e-2)])
def test_logistic_agrees_with_scikit_learn(width: int, strength: float) -> None:
    """The objective: Σ cross-entropy + strength · N/2 · ‖W‖² on standardised features over √D, intercept unpenalised."""
    x, y = clouds(width=width)
    z = standardised(x)
    theirs = LogisticRegression(C=1 / (strength * len(y)), tol=1e-10, max_iter=5000).fit(z, y)
    axes = principal_axes(x)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(y)).float()
    w, b = solve_logistic(axes, one_hot, torch.ones(1, len(y)), torch.tensor([strength]), steps=3000)
    exact = (axes.z @ w[0] + b[0]).numpy()
    np.testing.assert_allclose(softmax(exact), theirs.predict_proba(z), atol=2e-3)
    # What `fit_head` stops at after its fixed number of steps is as good as the optimum.
    ours = fit_head(x, y, 3, "logistic", (0,), strength).logits(x)
    np.testing.assert_allclose(softmax(ours), theirs.predict_proba(z), atol=2e-2)


def test_logistic_folds_equal_separate_fits() -> None:
    """All folds are solved together, by weights of 0 and 1; each equals the fit on its own rows alone."""
    x, y = clouds()
    folds, axes = thirds(len(y)), principal_axes(x)
    score, *_ = logistic_scores(axes, y, folds, 3, (0,))
    z = standardised(x)
    for fold in range(3):
        out = folds == fold
        theirs = LogisticRegression(C=1 / (score.strength * (~out).sum()), tol=1e-10, max_iter=5000).fit(
            z[~out], y[~out]
        )
        np.testing.assert_allclose(softmax(score.logits[out]), theirs.predict_proba(z[out]), atol=0.08)
        assert (score.logits[out].argmax(1) == theirs.predict(z[out])).mean() > 0.95
    assert score.strength in LOGISTIC_STRENGTHS


def test_logistic_takes_the_strength_with_the_least_loss_out_of_fold() -> None:
    x, y = clouds(apart=0.3)
    strict, *_ = logistic_scores(principal_axes(x), y, thirds(len(y)), 3, (0,))
    assert strict.strength == max(LOGISTIC_STRENGTHS)  # nearly noise: the strongest penalty
    x, y = clouds(apart=6.0)
    assert logistic_scores(principal_axes(x), y, thirds(len(y)), 3, (0,))[0].accuracy == 1.0


@pytest.mark.parametrize("width", [12, 200])
def test_ridge_by_hat_matrix_and_by_gram_equal_refits(width: int) -> None:
    x, y = clouds(width=width)
    folds, axes = thirds(len(y)), principal_axes(x)
    targets = torch.nn.functional.one_hot(torch.from_numpy(y)).float()
    outs = [torch.from_numpy(folds == fold) for fold in range(3)]
    penalties = [strength * len(y) for strength in RIDGE_STRENGTHS[2:]]
    by_gram, by_hat = (by(axes, targets, outs, penalties) for by in (ridge_by_gram, ridge_by_hat))
    for penalty, gram, hat in zip(penalties, by_gram, by_hat, strict=True):
        refit = np.empty((len(y), 3))
        z = standardised(x)
        for out in (folds == fold for fold in range(3)):
            refit[out] = Ridge(alpha=penalty, solver="cholesky").fit(z[~out], targets.numpy()[~out]).predict(z[out])
        np.testing.assert_allclose(hat.numpy(), refit, atol=5e-3)
        np.testing.assert_allclose(gram.numpy(), refit, atol=5e-3)


def test_ridge_head_equals_ridge_regression() -> None:
    x, y = clouds()
    head = fit_head(x, y, 3, "ridge", (0,), 1e-3)
    z = standardised(x)
    theirs = Ridge(alpha=1e-3 * len(y), solver="cholesky").fit(z, np.eye(3)[y]).predict(z)
    ours = head.logits(x)
    scale = (ours * theirs).sum() / (theirs * theirs).sum()  # the head's scores are divided by a temperature
    assert scale > 0
    np.testing.assert_allclose(ours / scale, theirs, atol=5e-3)


def nearest_mean(z: NDArray[np.float64], inside: NDArray[np.bool_], y: Labels, classes: int) -> Labels:
    means = np.stack([z[inside & (y == label)].mean(0) for label in range(classes)])
    return np.asarray(((z[:, None, :] - means) ** 2).sum(2).argmin(1))


def test_centroid_is_the_nearest_mean() -> None:
    x, y = clouds()
    folds, z = thirds(len(y)), standardised(x)
    score, *_ = centroid_scores(principal_axes(x), y, folds, 3, (0,))
    for fold in range(3):
        out = folds == fold
        assert (score.logits[out].argmax(1) == nearest_mean(z, ~out, y, 3)[out]).all()
    head = fit_head(x, y, 3, "centroid", (0,), 0.0)
    assert (head.logits(x).argmax(1) == nearest_mean(z, np.ones(len(y), bool), y, 3)).all()


def test_a_class_of_one_picture_does_not_set_the_temperature_of_the_nearest_mean() -> None:
    x, y = clouds(width=12)
    folds = thirds(len(y))
    plain, *_ = centroid_scores(principal_axes(x), y, folds, 3, (0,))
    y = np.append(y, 3)
    score, *_ = centroid_scores(principal_axes(np.concatenate([x, x[:1] + 1])), y, np.append(folds, 0), 4, (0,))
    assert score.logits[-1].argmax() != 3, "no fold that it is asked in knows its mean"
    assert score.log_loss < plain.log_loss + 0.3, "with an infinite distance it would be as if all were guessed, 1.39"
    assert score.temperature < 5 * plain.temperature


@pytest.mark.parametrize("kind", ["logistic", "ridge", "centroid"])
@pytest.mark.parametrize("width", [12, 200])
def test_a_folded_head_answers_as_in_the_axes(kind: str, width: int) -> None:
    x, _ = clouds(width=width)
    axes = principal_axes(x)
    w = torch.randn(axes.z.shape[1], 3, generator=torch.Generator().manual_seed(1))
    b = torch.randn(3, generator=torch.Generator().manual_seed(2))
    head = Head("logistic", (1,), 0.5, *axes.raw(w, b))
    np.testing.assert_allclose(head.logits(x), (axes.z @ w + b).numpy(), rtol=1e-3, atol=2e-3)
    assert (head.weight.dtype, head.bias.dtype) == (np.float32, np.float32)


def test_principal_axes_keep_distances_and_are_orthogonal() -> None:
    for width in (12, 200):
        x, _ = clouds(width=width)
        axes, z = principal_axes(x), standardised(x)
        gram = (axes.z.T @ axes.z).numpy()
        np.testing.assert_allclose(gram, np.diag(axes.power.numpy()), atol=1e-3)
        np.testing.assert_allclose((axes.z @ axes.z.T).numpy(), z @ z.T, atol=1e-3)


def test_features_that_never_move_do_no_harm() -> None:
    x, y = clouds()
    still = np.concatenate([x, np.full((len(x), 4), 7.0, np.float32)], axis=1)
    for kind in ("logistic", "ridge", "centroid"):
        head = fit_head(still, y, 3, kind, (0,), 1e-3)
        assert np.isfinite(head.weight).all() and np.isfinite(head.bias).all()
        assert (head.logits(still).argmax(1) == y).mean() > 0.8


@pytest.mark.parametrize("score", [logistic_scores, ridge_scores, centroid_scores])
def test_a_class_that_a_fold_lacks_is_no_obstacle(score) -> None:  # type: ignore[no-untyped-def]
    x, y = clouds(count=60)
    y = y.copy()
    folds = np.arange(60) % 5
    rare = np.array([0, 5])  # both pictures of a fourth class lie in fold 0
    y[rare] = 3
    assert set(folds[rare]) == {0}
    found, *_ = score(principal_axes(x), y, folds, 4, (0,))
    assert np.isfinite(found.logits).all() and np.isfinite(found.log_loss)
    assert (found.logits[rare].argmax(1) != 3).all()
    assert found.accuracy > 0.45


def test_scores_are_what_their_logits_say() -> None:
    x, y = clouds()
    scorers = (logistic_scores, ridge_scores, centroid_scores)
    for found in [each for score in scorers for each in score(principal_axes(x), y, thirds(len(y)), 3, (2,))]:
        right = found.logits.argmax(1) == y
        losses = -np.log(softmax(found.logits)[np.arange(len(y)), y])
        assert found.accuracy == pytest.approx(right.mean())
        assert found.accuracy_se == pytest.approx(right.std() / len(y) ** 0.5)
        assert found.log_loss == pytest.approx(losses.mean(), rel=1e-4)
        assert found.log_loss_se == pytest.approx(losses.std() / len(y) ** 0.5, rel=1e-4)


def test_a_blend_is_not_fitted_as_if_it_were_one_head() -> None:
    with pytest.raises(ValueError, match="part by part"):
        fit_head(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), 2, "blend", (0,), 1e-4)


def test_the_same_head_twice() -> None:
    x, y = clouds()
    heads: list[Head] = [fit_head(x, y, 3, "logistic", (0,), 1e-4) for _ in range(2)]
    assert np.array_equal(heads[0].weight, heads[1].weight)


@pytest.mark.parametrize(("kind", "score"), [("ridge", ridge_scores), ("centroid", centroid_scores)])
def test_a_head_that_knows_nothing_is_not_sure_of_itself(kind: Kind, score: Scorer) -> None:
    """More features than pictures and labels by chance: what the training pictures suggest is far too sure."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((500, 200)).astype(np.float32), draw.integers(2, size=500)
    fit, unseen = slice(0, 80), slice(80, 500)
    found, *_ = score(principal_axes(x[fit]), y[fit], np.arange(80) % 5, 2, (0,))

    def loss(temperature: float | None) -> float:
        head = fit_head(x[fit], y[fit], 2, kind, (0,), found.strength, temperature)
        chances = softmax(head.logits(x[unseen]).astype(np.float64))
        return float(-np.log(chances[np.arange(420), y[unseen]]).mean())

    assert loss(found.temperature) < np.log(2) + 0.1
    assert loss(None) > loss(found.temperature) + 0.02


@pytest.mark.parametrize("kind", ["logistic", "ridge", "centroid"])
@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("held", [0, 2**20])
def test_a_head_on_streamed_rows_equals_one_on_rows_in_memory(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, width: int, held: int
) -> None:
    monkeypatch.setattr(sys.modules["headstart.solvers"], "BLOCK", 32)
    monkeypatch.setattr(sys.modules["headstart.solvers"], "HELD", held)
    x, y = clouds(width=width)
    longest: list[int] = []

    def read(start: int, stop: int) -> Floats:
        longest.append(stop - start)
        return x[start:stop]

    streamed = solved(Streamed.of(read, len(x)), y, 3, kind, (0,), 1e-4, 2.0)
    whole = fit_head(x, y, 3, kind, (0,), 1e-4, 2.0)
    scale = np.abs(whole.logits(x)).max()
    np.testing.assert_allclose(streamed.logits(x), whole.logits(x), atol=5e-3 * scale)
    assert max(longest) <= 32


def test_answers_are_read_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["headstart.heads"], "BLOCK", 7)
    x, y = clouds()
    head, asked = fit_head(x, y, 3, "ridge", (0,), 1e-4), np.array([5, 3, 3, *range(40)])
    longest: list[int] = []

    class Stored:
        def stages(self, taps: tuple[int, ...], indices: Labels) -> Floats:
            assert taps == (0,)
            longest.append(len(indices))
            return x[indices]

    np.testing.assert_allclose(head.answers(Stored(), asked), head.logits(x[asked]), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    assert max(longest) == 7
    assert head.answers(Stored(), asked[:0]).shape == (0, 3)  # type: ignore[arg-type]
