"""What every metric is called, how its numbers are printed, and what it means: one table for all reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    ``heading`` is its short name, ``unit`` that of its values, ``decimals`` those of a printed value (None: counts,
    printed with k, M or G, and four digits for metrics that this table does not know).  ``better`` is ``higher``,
    ``lower`` or empty where neither is; ``signed`` values print their plus.
    """

    name: str
    heading: str
    unit: str
    decimals: int | None
    meaning: str
    better: str = ""
    signed: bool = False
    count: bool = False

    @property
    def title(self) -> str:
        """The heading of a column: the short name and the unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def number(self, value: float, plus: bool = True) -> str:
        """The value in text, without its unit; ``plus`` is False for spreads, which have no sign."""
        if self.count:
            return size(value)
        if self.decimals is None:
            return f"{value:.4g}"
        sign = "+" if self.signed and plus else ""
        text = f"{value:{sign}.{self.decimals}f}"
        # -0.00 and +0.00 would claim a direction that the digits do not show
        return text.lstrip("+-") if float(text) == 0 else text


def _control(metric: Metric) -> Metric:
    """The same comparison, but with the dense network that was tuned as long as the pruned one."""
    meaning = metric.meaning.replace("the dense network", "the dense network tuned equally long")
    name, heading = f"{metric.name}_control", f"{metric.heading}, tuned dense"
    return Metric(name, heading, metric.unit, metric.decimals, meaning, metric.better, metric.signed)


# fmt: off
_COMPARED = (
    Metric("top1_change", "top-1 change", "pp", 2, "Top-1 accuracy minus that of the dense network.", "higher", True),
    Metric("top5_change", "top-5 change", "pp", 2, "Top-5 accuracy minus that of the dense network.", "higher", True),
    Metric(
        "top1_err_increase", "top-1 error increase", "pp", 2,
        "Top-1 error minus that of the dense network.", "lower", True,
    ),
    Metric(
        "top5_err_increase", "top-5 error increase", "pp", 2,
        "Top-5 error minus that of the dense network.", "lower", True,
    ),
    Metric(
        "agreement", "agreement", "%", 2,
        "Share of test images for which the prediction equals that of the dense network.", "higher",
    ),
    Metric("kl", "KL", "nats", 3, "KL divergence of the network's outputs from those of the dense network.", "lower"),
)

_DETECTION = (
    Metric(
        "map_voc07", "mAP (VOC07)", "%", 2, "Mean over the classes of AP at IoU 0.5 by VOC 2007's eleven points; "
        "difficult objects do not count.", "higher",
    ),
    Metric(
        "map_voc12", "mAP (VOC12)", "%", 2, "Mean over the classes of AP at IoU 0.5 by the area (VOC 2010 and later).",
        "higher",
    ),
    Metric("coco_ap", "COCO AP", "%", 2, "COCO's AP, the mean over IoU 0.50 to 0.95.", "higher"),
    Metric("coco_ap50", "AP50", "%", 2, "COCO's AP at IoU 0.50.", "higher"),
    Metric("coco_ap75", "AP75", "%", 2, "COCO's AP at IoU 0.75.", "higher"),
    Metric("coco_ap_s", "AP small", "%", 2, "COCO's AP of objects below 32x32 pixels.", "higher"),
    Metric("coco_ap_m", "AP medium", "%", 2, "COCO's AP of objects from 32x32 to 96x96 pixels.", "higher"),
    Metric("coco_ap_l", "AP large", "%", 2, "COCO's AP of objects above 96x96 pixels.", "higher"),
)
_DETECTION_COMPARED = tuple(
    Metric(
        f"map_{year}_change", f"mAP change ({year.upper()})", "pp", 2,
        f"mAP ({year.upper()}) minus that of the dense network, paired by image.", "higher", True,
    )
    for year in ("voc07", "voc12")
)

GLOSSARY: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("macs", "MACs", "", None, "Multiply-accumulates of the convolutions, one image.", "lower", count=True),
        Metric("params", "params", "", None, "Parameters of the network.", "lower", count=True),
        Metric("speedup", "speed-up", "x", 3, "MACs of the dense network divided by those of this one.", "higher"),
        Metric("top1_acc", "top-1", "%", 2, "Share of test images whose label is predicted.", "higher"),
        Metric("top5_acc", "top-5", "%", 2, "Share of test images with the label among five predictions.", "higher"),
        Metric(
            "dynamic_macs", "MACs per image", "", None,
            "Multiply-accumulates for one image, mean over the test images: the layers at the masks that were applied "
            "to it, and the gates.", "lower", count=True,
        ),
        Metric("dynamic_macs_p5", "MACs, 5th percentile", "", None, "The same, 5th percentile.", "lower", count=True),
        Metric("dynamic_macs_p50", "MACs, median", "", None, "The same, median.", "lower", count=True),
        Metric("dynamic_macs_p95", "MACs, 95th percentile", "", None, "The same, 95th percentile.", "lower",
               count=True),
        Metric(
            "dynamic_speedup", "MAC speed-up", "x", 2,
            "MACs of the dense network divided by the mean MACs per image of this one, gates included.", "higher",
        ),
        Metric("gate_share", "gates", "%", 2, "Share of the gates in the MACs per image.", "lower"),
        Metric(
            "weight_reduction", "weight reduction", "x", 2,
            "Weights of the dense network divided by those between channels that some test image uses.", "higher",
        ),
        Metric("expected_macs", "MACs from the densities", "", None,
               "MACs that the densities alone tell, independent masks, without gates.", "lower", count=True),
        Metric("expected_macs_gates", "with gates", "", None, "The same with the gates.", "lower", count=True),
        Metric("expected_speedup", "MAC speed-up from the densities", "x", 3,
               "MACs of the dense network divided by those that the densities tell, gates included.", "higher"),
        Metric("top1_err", "top-1 error", "%", 2, "Share of test images whose label is not predicted.", "lower"),
        Metric("top5_err", "top-5 error", "%", 2, "Share of test images without the label among five predictions.",
               "lower"),
        *_COMPARED,
        *(_control(metric) for metric in _COMPARED),
        *_DETECTION,
        *_DETECTION_COMPARED,
        *(_control(metric) for metric in _DETECTION_COMPARED),
        *(
            Metric(
                f"map_{year}_difference", f"mAP difference ({year.upper()})", "pp", 2,
                f"mAP ({year.upper()}), first method minus second, paired by image and seed.", "higher", True,
            )
            for year in ("voc07", "voc12")
        ),
        Metric(
            "held_out_error", "held-out error", "%", 2,
            "Share of the responses' variance that the layers which lose channels miss, on training rows held out from "
            "the fit; mean over these layers.",
            "lower",
        ),
        Metric(
            "top1_difference", "top-1 difference", "pp", 2, "Top-1 accuracy, first method minus second.", "higher", True
        ),
        Metric(
            "top5_difference", "top-5 difference", "pp", 2, "Top-5 accuracy, first method minus second.", "higher", True
        ),
        Metric(
            "agreement_difference", "agreement difference", "pp", 2,
            "Agreement with the dense network, first method minus second.", "higher", True,
        ),
        Metric(
            "kl_difference", "KL difference", "nats", 3,
            "KL from the dense network, first method minus second.", "lower", True,
        ),
        Metric(
            "kl_ratio", "relative KL difference", "%", 1,
            "KL of the first method relative to the second's, minus 100 %.", "lower", True,
        ),
        *(
            Metric(f"memory_{part}_batch{size}", f"{heading}, batch {size}", "MB", 2, f"{meaning} {size}.", "lower")
            for size in (1, 128)
            for part, heading, meaning in (
                ("weights", "weights read", "Bytes (1e6) of weights that must be read for one image, in batches of"),
                ("activations", "activations",
                 "Bytes (1e6) of activations read and written for one image, in batches of"),
                ("peak", "peak memory", "Largest sum of live activations and the weights of one layer, for a batch of"),
            )
        ),
        *(
            Metric(f"latency_{name}", heading, "ms", 3, f"Median time of the {meaning}, interleaved with the others.",
                   "lower")
            for name, heading, meaning in (
                ("dense", "dense", "dense network"),
                ("folded", "dense, folded",
                 "dense network in channels-last layout, its batch norms folded into the filters"),
                ("masked", "masked", "gated network that multiplies by zero"),
                ("skipped", "skipped", "gated network that computes the winners only"),
            )
        ),
        Metric("theoretical_speedup", "theoretical", "x", 2,
               "MACs of the dense network divided by those of the gated one on the images that were timed.", "higher"),
        Metric("realised_speedup", "realised", "x", 2,
               "Time of the dense network divided by that of the skipped one, paired in interleaved rounds.", "higher"),
        Metric("realised_over_folded", "realised, over folded", "x", 2,
               "The same over the dense network in channels-last layout with its batch norms folded.", "higher"),
        Metric("realised_share", "realised / theoretical", "%", 1,
               "Realised speed-up divided by the theoretical one.", "higher"),
        *(
            Metric(f"time_share_{part}", heading, "%", 1, f"Share of the skipped network's time {meaning}.")
            for part, heading, meaning in (
                ("gates", "time: gates", "spent on saliencies and winners"),
                ("gather", "time: gather",
                 "spent on gathering the active weights and scaling them by their saliencies"),
                ("convolution", "time: convolutions", "spent on convolutions and ReLU"),
                ("rest", "time: rest", "spent outside of gated layers"),
            )
        ),
        Metric("machine_load", "load", "", 2,
               "Runnable processes for each processor around the timing (one minute's mean, this one included): above "
               "1 the times are disturbed.", "lower"),
        Metric("winner_flips", "winners flipped", "%", 2,
               "Share of test images for which rounding (float32) makes another channel win in some layer, skipped "
               "against masked execution.", "lower"),
        Metric("skipped_top1_change", "top-1, skipped minus masked", "pp", 2,
               "Top-1 accuracy of the skipped execution minus that of the masked one.", "higher", True),
        Metric("skipped_agreement", "agreement, skipped and masked", "%", 2,
               "Share of test images for which both executions predict the same.", "higher"),
        Metric("skipped_float64_difference", "difference in float64", "", None,
               "Largest difference of the logits of both executions in float64, relative to the largest logit.",
               "lower"),
    )
}
# fmt: on


def metric(name: str, unit: str = "") -> Metric:
    """The metric of that name; one that the table does not know is printed with its own name and ``unit``."""
    return GLOSSARY.get(name) or Metric(name, name.replace("_", " "), unit, None, "")


def position(name: str) -> tuple[int, str]:
    """A sort key: the order of the glossary, unknown metrics behind by name."""
    names = list(GLOSSARY)
    return (names.index(name) if name in GLOSSARY else len(names), name)


def size(value: float) -> str:
    """A count in three digits with k, M or G (3.39 G, 62.9 M); below 1000 as it is."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            short = value / scale
            return f"{short:.{2 if abs(short) < 9.995 else 1 if abs(short) < 99.95 else 0}f} {suffix}"
    return f"{value:g}"


def meanings(names: set[str]) -> list[str]:
    """One line for each of these metrics that the glossary knows: name, unit, meaning, better direction."""
    lines = []
    for name in sorted(names & set(GLOSSARY), key=position):
        known = GLOSSARY[name]
        better = f" {known.better.capitalize()} is better." if known.better else ""
        lines.append(f"**{known.title}** (`{name}`): {known.meaning}{better}")
    return lines
