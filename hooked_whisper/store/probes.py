"""Linear probes on a store: what can be read off each layer, and what could be without it.

Every score is out of fold: no recording, or no speaker, is on both sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from hooked_whisper.errors import ProbeError
from hooked_whisper.hooks.names import NamesFilter, match_names
from hooked_whisper.store.probe_data import MEL_HOOK, Samples, gather_samples, mel_features
from hooked_whisper.store.reader import ActivationStore

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

ProbeKind = Literal["logistic", "ridge_classifier", "ridge"]
Pooling = Literal["mean", "frame"]

_N_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class ProbeScore:
    """How well one set of features tells the label.

    Args:
        features: A hook's name, or the baseline's: `"majority"`, `"mel"`, or
            `"shuffled "` and the last hook.
        score: Accuracy, or R² of ridge regression; out of fold.
        low: Of the 95 % interval, by resampling whole groups.
        high: Of the same.
    """

    features: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found at each hook, and the baselines.

    Args:
        label: What was probed for.
        metric: `"accuracy"` or `"R²"`.
        scores: One for each hook, in the order in which they run.
        baselines: Features that know nothing of the model.
        n_samples: Rows, or pooled recordings.
        n_groups: Recordings, or values of what the split was by.
        classes: The label's values; empty for a regression.
    """

    label: str
    metric: str
    scores: tuple[ProbeScore, ...]
    baselines: tuple[ProbeScore, ...]
    n_samples: int
    n_groups: int
    classes: tuple[str, ...]

    def table(self) -> "pandas.DataFrame":
        """A row for each hook and baseline."""
        import pandas

        rows = [each.__dict__ for each in (*self.scores, *self.baselines)]
        return pandas.DataFrame(rows)

    def plot(self) -> "matplotlib.figure.Figure":
        """The scores by hook with their intervals, and the baselines as lines."""
        from hooked_whisper.figures import plot_probes

        return plot_probes(
            torch.tensor([[each.score, each.low, each.high] for each in self.scores]),
            [each.features for each in self.scores],
            {each.features: each.score for each in self.baselines},
            label=f"{self.metric} for {self.label}",
            title=f"{self.n_samples} samples, {self.n_groups} groups, out of fold",
        )


def probe(
    store: ActivationStore,
    hooks: NamesFilter,
    label: str,
    *,
    kind: ProbeKind = "logistic",
    pooling: Pooling = "mean",
    split_by: str | None = None,
    n_folds: int = 5,
    strength: float | int = 1.0,
    max_samples: int = 20_000,
    seed: int = 0,
) -> ProbeResult:
    """How well a linear probe reads a label off each hook.

    Features are scaled to unit variance on the training folds. Baselines: the
    most frequent class (or the mean), the last hook with the labels shuffled
    among recordings, and the mel of the same moments where the store has
    `encoder.hook_mel`.

    Args:
        store: Activations with labels.
        hooks: Names or globs, all with rows of one kind.
        label: Its name; a timed label is read at each moment, and pooled over its intervals.
        kind: `"logistic"` or `"ridge_classifier"` for classes, `"ridge"` for numbers.
        pooling: `"mean"` over each recording (or interval), or every `"frame"`.
        split_by: A label whose values are kept whole, such as `"speaker"`;
            None is the recording.
        n_folds: Parts of which each is predicted from the others.
        strength: Of the L2 penalty: 1/C of the logistic regression, or ridge's alpha.
        max_samples: A random choice is taken of more.
        seed: Of the folds, of what is shuffled and resampled.

    Raises:
        ProbeError: No labels, one class, or too few groups for the folds; scikit-learn,
            which is in the extra `probes`, is not installed.
        HookNameError: A hook that the store does not have.

    Source: Alain & Bengio 2016; Hewitt & Liang 2019 for the shuffled labels.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ProbeError(
            f"probes learn with scikit-learn, which cannot be imported ({error}). Install it: "
            "pip install 'hooked-whisper[probes]'"
        ) from error
    for name, value, allowed in (("kind", kind, ProbeKind), ("pooling", pooling, Pooling)):
        if value not in get_args(allowed):
            raise ProbeError(
                f"{name} is {value!r}; it can be one of {', '.join(get_args(allowed))}."
            )
    known = [name for name in store.hook_names if name != MEL_HOOK]
    names = sorted(match_names(hooks, known), key=_depth)
    samples = gather_samples(
        store,
        names,
        label,
        pooled=pooling == "mean",
        split_by=split_by,
        most=max_samples,
        seed=seed,
    )
    values, classes = _values(samples.values, label, kind)
    folds = _folds(values, samples, kind, n_folds, split_by, seed)
    judge = _Judge(kind, strength, values, samples, folds, seed)
    scores = []
    features = np.zeros((0, 0))
    for name in names:
        features = samples.features(store, name)
        scores.append(judge.score(name, features))
    baselines = [judge.majority(), judge.shuffled(f"shuffled {names[-1]}", features)]
    mel = mel_features(store, samples)
    if mel is not None:
        baselines.append(judge.score("mel", mel))
    metric = "R²" if kind == "ridge" else "accuracy"
    n_groups = len(set(samples.groups.tolist()))
    return ProbeResult(
        label, metric, tuple(scores), tuple(baselines), len(values), n_groups, classes
    )


def _depth(name: str) -> tuple[bool, int]:
    """Where a hook runs: before the blocks, in them, behind them; the decoder last."""
    place = 1 if ".blocks." in name else 2 if ".ln_final." in name or "logits" in name else 0
    return name.startswith("decoder."), place


def _values(values: list[Any], label: str, kind: ProbeKind) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label as numbers: of classes, or its own."""
    if kind == "ridge":
        try:
            return np.array([float(each) for each in values]), ()
        except (TypeError, ValueError) as error:
            raise ProbeError(
                f"{label!r} has values that are no numbers ({error}), which ridge regression "
                'needs. Use kind="logistic" or "ridge_classifier".'
            ) from error
    texts = [str(each) for each in values]
    classes = tuple(sorted(set(texts)))
    if len(classes) < 2:
        raise ProbeError(f"{label!r} is {classes[0]!r} everywhere; a probe needs two classes.")
    numbers = {each: number for number, each in enumerate(classes)}
    return np.array([numbers[each] for each in texts]), classes


def _folds(
    values: np.ndarray,
    samples: Samples,
    kind: ProbeKind,
    n_folds: int,
    split_by: str | None,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    n_groups, what = len(set(samples.groups.tolist())), split_by or "recording"
    if not 2 <= n_folds <= n_groups:
        raise ProbeError(
            f"n_folds is {n_folds}; there are {n_groups} values of {what!r} to split by, so that "
            f"2 to {n_groups} folds can be made."
        )
    import warnings

    if kind == "ridge":
        splitter = GroupKFold(n_folds, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are rarer than folds
        folds = list(splitter.split(np.zeros(len(values)), values, samples.groups))
    if kind != "ridge" and any(len(set(values[train])) < 2 for train, _ in folds):
        raise ProbeError(
            f"splitting by {what!r} leaves a part with one class only. Split by something that "
            "does not tell the label, or take fewer folds."
        )
    return folds


@dataclass
class _Judge:
    """One task, to be solved from several features."""

    kind: ProbeKind
    strength: float
    values: np.ndarray
    samples: Samples
    folds: list[tuple[np.ndarray, np.ndarray]]
    seed: int

    def score(self, name: str, features: np.ndarray) -> ProbeScore:
        return self._judge(name, self._predict(features, self.values), self.values)

    def shuffled(self, name: str, features: np.ndarray) -> ProbeScore:
        """The same with the labels of other recordings; of other moments, where they change."""
        rng = np.random.default_rng(self.seed)
        _, first, member = np.unique(
            self.samples.recordings, return_index=True, return_inverse=True
        )
        if (self.values[first][member] == self.values).all():
            values = rng.permutation(self.values[first])[member]
        else:
            values = rng.permutation(self.values)
        return self._judge(name, self._predict(features, values), values)

    def majority(self) -> ProbeScore:
        """The most frequent class of the training folds, or their mean."""
        predicted = np.zeros(len(self.values))
        for train, test in self.folds:
            own = self.values[train]
            predicted[test] = own.mean() if self.kind == "ridge" else np.bincount(own).argmax()
        return self._judge("majority", predicted, self.values)

    def _predict(self, features: np.ndarray, values: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        predicted = np.zeros(len(values))
        for train, test in self.folds:
            learner = {
                "logistic": lambda: LogisticRegression(C=1 / self.strength, max_iter=2000),
                "ridge_classifier": lambda: RidgeClassifier(alpha=self.strength),
                "ridge": lambda: Ridge(alpha=self.strength),
            }[self.kind]()
            fitted = make_pipeline(StandardScaler(), learner).fit(features[train], values[train])
            predicted[test] = fitted.predict(features[test])
        return predicted

    def _judge(self, name: str, predicted: np.ndarray, values: np.ndarray) -> ProbeScore:
        whole = self._metric(predicted, values, np.ones(len(values)))
        spread = [self._metric(predicted, values, weights) for weights in self._resampled()]
        low, high = np.quantile(spread, [0.025, 0.975])
        return ProbeScore(name, float(whole), float(low), float(high))

    def _metric(self, predicted: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
        if self.kind != "ridge":
            return float(np.average(predicted == values, weights=weights))
        mean = np.average(values, weights=weights)
        rest = np.average((values - predicted) ** 2, weights=weights)
        return float(1 - rest / np.average((values - mean) ** 2, weights=weights))

    def _resampled(self) -> Iterator[np.ndarray]:
        """How often each sample is in a bootstrap of whole groups."""
        rng = np.random.default_rng(self.seed)
        _, member = np.unique(self.samples.groups, return_inverse=True)
        n_groups = member.max() + 1
        for _ in range(_N_BOOTSTRAPS):
            drawn = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)
            yield drawn[member].astype(float)
