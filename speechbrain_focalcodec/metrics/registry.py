"""Makes metrics by name."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechbrain_focalcodec.errors import ConfigError
from speechbrain_focalcodec.metrics.base import Metric
from speechbrain_focalcodec.metrics.plugins import is_plugin, make_plugin

__all__ = ["GROUPS", "METRICS", "MetricOptions", "make_metrics"]


@dataclass(frozen=True)
class MetricOptions:
    """Options of metrics.

    Arguments
    ---------
    device : str
        Device of the models.
    whisper : str or Path, optional
        Checkpoint of openai-whisper, for ``wer``.
    sources : dict
        Local folder or hub repository (``owner/name@revision``) by name of the
        metric, to replace a default model.
    """

    device: str = "cpu"
    whisper: str | Path | None = None
    sources: Mapping[str, str | Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A metric in the table.

    `attribute` is a class, or ``Class.classmethod``, of `module` in this room.
    `arguments` returns its keyword arguments. `hub` is True if the model comes
    from the hub.
    """

    module: str
    attribute: str
    arguments: Callable[[MetricOptions], dict[str, Any]] = lambda options: {}
    hub: bool = False

    def make(self, options: MetricOptions) -> Metric:
        """Import the module and make the metric."""
        module = f"speechbrain_focalcodec.metrics.{self.module}"
        maker: Any = importlib.import_module(module)
        for part in self.attribute.split("."):
            maker = getattr(maker, part)
        arguments = self.arguments(options)
        metric: Metric = maker(**arguments)
        if arguments.get("source") is not None:
            metric.fingerprint = str(arguments["source"])
        return metric


def _device(options: MetricOptions) -> dict[str, Any]:
    return {"device": options.device}


def _whisper(options: MetricOptions) -> dict[str, Any]:
    if options.whisper is None:
        raise ConfigError(
            "the metric wer needs the path of a Whisper checkpoint, such as "
            "tiny.en.pt (whisper-small loads one from the hub)"
        )
    return {"path": options.whisper, "device": options.device}


def _from_hub(name: str, **fixed: Any) -> Callable[..., dict[str, Any]]:
    return lambda options: (
        fixed
        | {
            "source": options.sources.get(name),
            "device": options.device,
        }
    )


METRICS: dict[str, Entry] = {
    "stoi": Entry("stoi", "Stoi"),
    "estoi": Entry("stoi", "Stoi", lambda options: {"extended": True}),
    "pesq": Entry("pesq", "Pesq"),
    "mel": Entry("mel", "MelDistance", _device),
    "pitch": Entry("pitch", "Pitch"),
    "dnsmos": Entry("dnsmos", "Dnsmos"),
    "distillmos": Entry("distillmos", "DistillMos", _device),
    "speaker": Entry("speaker", "ResemblyzerSimilarity", _device),
    "wer": Entry("dwer", "WordErrorRates.of_checkpoint", _whisper),
    "utmos": Entry("utmos", "Utmos", _from_hub("utmos"), hub=True),
    "whisper-small": Entry(
        "dwer", "WordErrorRates.of_hub", _from_hub("whisper-small"), hub=True
    ),
    "wavlm-base-sv": Entry(
        "wavlm_speaker",
        "WavLMSimilarity",
        _from_hub("wavlm-base-sv", size="base"),
        hub=True,
    ),
    "wavlm-large-sv": Entry(
        "wavlm_speaker",
        "WavLMSimilarity",
        _from_hub("wavlm-large-sv", size="large"),
        hub=True,
    ),
}

# Names of several metrics.
GROUPS: dict[str, tuple[str, ...]] = {
    # Without downloads and paths.
    "default": (
        *("stoi", "estoi", "pesq", "mel", "pitch"),
        *("dnsmos", "distillmos", "speaker"),
    ),
    # As in the papers.
    "paper": ("utmos", "whisper-small", "wavlm-base-sv", "dnsmos"),
}


def make_metrics(
    names: Sequence[str], options: MetricOptions | None = None
) -> list[Metric]:
    """Make metrics by name.

    Arguments
    ---------
    names : sequence of str
        Keys of `METRICS` and of `GROUPS`, and ``package.module:Name`` for the
        user's own metrics, whose code is executed. Duplicates are dropped.
    options : MetricOptions, optional
        Options.

    Returns
    -------
    list of Metric
        In the order of `names`.

    Raises
    ------
    ConfigError
        If a name is unknown, a source is given for a metric without a hub
        model, or a path is missing.
    CheckpointError
        If a model cannot be loaded.
    ImportError
        If a library is missing; the message names the extra to install.

    Example
    -------
    >>> [metric.name for metric in make_metrics(["mel", "mel"])]
    ['mel']
    """
    options = options or MetricOptions()
    # Without duplicates, in order.
    expanded = dict.fromkeys(
        single for name in names for single in GROUPS.get(name, (name,))
    )
    for name in expanded:
        if name not in METRICS and not is_plugin(name):
            raise ConfigError(
                f"no metric {name!r}; there are {', '.join(METRICS)}, the "
                f"groups {', '.join(GROUPS)}, and MODULE:NAME for your own"
            )
    with_source = [name for name, entry in METRICS.items() if entry.hub]
    for name in options.sources:
        if name not in with_source:
            raise ConfigError(
                f"no model can be given for {name!r}, only for "
                f"{', '.join(with_source)}"
            )
    return [_make(name, options) for name in expanded]


def _make(name: str, options: MetricOptions) -> Metric:
    if name in METRICS:
        return METRICS[name].make(options)
    # mypy rejects abstract classes as types.
    return make_plugin(name, Metric, options.device)  # type: ignore[type-abstract]
