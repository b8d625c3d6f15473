"""The metrics of a run's log, each declared once: where it is drawn, and when it is an alert."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """A chart of metrics against the samples seen.

    Attributes:
        unit: unit of the vertical axis.
        meaning: sentence that says what the metrics tell.
        logarithmic: whether the vertical axis is logarithmic.
        compared: whether `drrho compare` draws the chart beside its results.
    """

    title: str
    unit: str
    meaning: str
    logarithmic: bool = False
    compared: bool = False


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Limit beyond which the mean of a metric over the newest rows is an alert.

    Attributes:
        alert: name of the alert.
        text: message, with `{value}`, `{limit}` and `{negatives}` (number of negatives).
        checked: description of what is an alert, with `{limit}`.
        above, below: the limit; one of them is given.
        of_negatives: whether the metric is a share of an anchor's negatives, and the limit their
            number.
    """

    alert: str
    text: str
    checked: str
    above: float | None = None
    below: float | None = None
    of_negatives: bool = False

    @property
    def limit(self) -> float:
        limit = self.below if self.above is None else self.above
        assert limit is not None
        return limit

    def found(self, share: float, *, num_negatives: int) -> str | None:
        """Format the alert's text for a value of the metric; None within the limit."""
        value = share * num_negatives if self.of_negatives else share
        beyond = value < self.limit if self.above is None else value > self.limit
        text = self.text.format(value=value, limit=self.limit, negatives=num_negatives)
        return text if beyond else None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that training logs.

    Attributes:
        panel: chart that shows it, or None.
        label: name in the chart's legend; empty for the only metric of a chart.
        limit: limit of an alert, or None.
    """

    name: str
    panel: Panel | None = None
    label: str = ""
    limit: Limit | None = None


QUALITY = Panel(
    "Quality",
    "mean reciprocal rank",
    "How high the right partner ranks on the evaluation set; 1 is always first.",
    compared=True,
)
LOSS = Panel(
    "Loss",
    "loss",
    "What is minimised.",
)
GAPS = Panel(
    "Mean gaps",
    "cosine",
    "Mean over all negatives of the loss, and of its excess over the reference.",
)
VARIANCE = Panel(
    "Variance of gaps",
    "squared cosine",
    "The theory's bound is small where the variance of the excess loss is.",
    logarithmic=True,
    compared=True,
)
SAMPLE_SIZE = Panel(
    "Effective sample size",
    "share of the negatives",
    "How many of an anchor's negatives count: 1 is all of them alike.",
    compared=True,
)
DIVERGENCE = Panel(
    "Divergence of the weights from uniform",
    "KL, nats",
    "How far the adversary has moved the weights of an anchor's negatives.",
    compared=True,
)
TEMPERATURE = Panel(
    "Temperature",
    "cosine",
    "Similarities are divided by it: the lower, the more hard negatives count.",
)
SATURATION = Panel(
    "Saturated anchors",
    "share of the anchors",
    "Anchors whose negatives are all far away: they have given up half their gradient.",
)

METRICS = (
    Metric(name="evaluation/mrr", panel=QUALITY),
    Metric(name="loss", panel=LOSS),
    Metric(name="excess_loss_mean", panel=GAPS, label="excess loss"),
    Metric(name="loss_mean", panel=GAPS, label="loss"),
    Metric(name="excess_loss_variance", panel=VARIANCE, label="excess loss"),
    Metric(name="loss_variance", panel=VARIANCE, label="loss"),
    Metric(
        name="effective_sample_size",
        panel=SAMPLE_SIZE,
        limit=Limit(
            alert="effective sample size collapsed",
            text="Of an anchor's {negatives:,} negatives {value:.1f} count on average (alert below "
            "{limit:g}): it learns from next to one pair.",
            checked="fewer than {limit:.1f} of an anchor's negatives count.",
            below=2.0,
            of_negatives=True,
        ),
    ),
    Metric(name="weights_kl", panel=DIVERGENCE),
    Metric(name="temperature", panel=TEMPERATURE),
    Metric(name="temperature_image", panel=TEMPERATURE, label="image anchors"),
    Metric(name="temperature_text", panel=TEMPERATURE, label="text anchors"),
    Metric(
        name="saturated_anchors",
        panel=SATURATION,
        limit=Limit(
            alert="anchors saturated",
            text="{value:.0%} of the anchors have given up more than half of their gradient (alert "
            "above {limit:.0%}): their negatives are all far away.",
            checked="more than {limit:.0%} of the anchors have given up half their gradient.",
            above=0.5,
        ),
    ),
    Metric(
        name="time/data_wait",
        limit=Limit(
            alert="waiting for data",
            text="Training waits for data {value:.0%} of the time (alert above {limit:.0%}).",
            checked="more than {limit:.0%} of the time.",
            above=0.5,
        ),
    ),
)
PANELS = tuple(dict.fromkeys(metric.panel for metric in METRICS if metric.panel is not None))


def metrics_of(panel: Panel) -> tuple[Metric, ...]:
    """List the metrics that a panel shows."""
    return tuple(metric for metric in METRICS if metric.panel == panel)
