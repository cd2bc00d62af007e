import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.plots import class_table, plot_average_precision, plot_precision_recall
from ast_model.metrics import tagging_metrics
from pipeline.labels import Labels

NAMES = ("Male speech, man speaking", "Rock & roll (live)", "Cash $ register $", "Siren")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    random = np.random.default_rng(0)
    targets = random.random((40, len(NAMES))) < 0.3
    scores = targets + random.normal(size=targets.shape)
    return Evaluation(scores, targets, tagging_metrics(scores, targets))


def test_precision_recall_curves_show_the_chosen_classes(evaluation: Evaluation) -> None:
    labels = Labels(NAMES, NAMES)
    (axes,) = plot_precision_recall(evaluation, labels, NAMES[2:0:-1]).axes
    legend = axes.get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert [text.split(" (")[0] for text in shown] == [r"Cash \$ register \$", "Rock & roll"]
    recall, precision = axes.lines[1].get_data()
    area = -np.sum(np.diff(recall) * np.asarray(precision)[:-1])
    assert area == pytest.approx(average_precision_score(evaluation.targets[:, 1], evaluation.scores[:, 1]))


def test_bars_are_labelled_and_sorted(evaluation: Evaluation) -> None:
    table = class_table(evaluation, Labels(NAMES, NAMES), np.arange(4))
    (axes,) = plot_average_precision(table).axes
    order = np.argsort(-evaluation.metrics.average_precision)
    expected = [f"{NAMES[n]} ({n})".replace("$", r"\$") for n in order]
    assert [text.get_text() for text in axes.get_yticklabels()] == expected
