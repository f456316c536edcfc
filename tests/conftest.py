"""What all tests need."""

import random
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from speechbrain.utils.importutils import LazyModule

# SpeechBrain leaves lazy modules in sys.modules that import an optional
# library (k2, ...) when asked for any attribute, and fail without it.
# Hypothesis asks every module for its file.
LazyModule.__file__ = None

# The same examples in every run; time limits only tell how busy a machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

PARITY = Path(__file__).parent / "parity"

# Files that take long, the longest first: a process of `make test` that began
# one last would work on when the others have nothing left.
LONG = [
    *("test_tokenize_kill", "test_benchmarks", "test_groups"),
    *("test_onnx_steps", "test_onnx", "test_recipes", "test_training"),
    *("test_masking", "test_windows", "test_ray_engine", "test_causal"),
    *(
        "test_sessions",
        "test_streaming",
        "test_ddp",
        "test_token_dataset",
        "test_checkpointing",
    ),
    *("test_downstream_interfaces", "test_downstream_rates"),
    *("test_train_batches", "test_downstream_tts", "test_downstream_speakers"),
    "test_earlier_versions",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """What tests share is the same, whichever of them comes first."""
    if fixturedef.scope != "function":
        name = f"{fixturedef.baseid}:{fixturedef.argname}"
        seed_all(zlib.crc32(name.encode()))


@pytest.fixture(autouse=True)
def _seed():
    seed_all(0)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture(autouse=True, scope="session")
def _wide_terminal():
    """Commands do not break the paths that they name, however long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture
def even_if_emulated(monkeypatch):
    """Brains train in bf16 on processors that have none, too."""
    name = "speechbrain_focalcodec.training.precision.emulates_bf16"
    monkeypatch.setattr(name, lambda: False)


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder of the models recorded from the published implementation."""
    return PARITY


# A shell ignores Ctrl-C in what it runs in the background, and processes that
# tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def causal_onnx(tmp_path_factory) -> Path:
    """Folder of a causal recorded model, exported to ONNX."""
    from speechbrain_focalcodec import FocalCodec
    from speechbrain_focalcodec.onnx.export import export_onnx

    folder = tmp_path_factory.mktemp("onnx") / "made"
    export_onnx(FocalCodec.from_pretrained(PARITY / "causal_50hz"), folder)
    return folder
