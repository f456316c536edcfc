"""Folders of tiny tasks with random weights, for tests."""

from pathlib import Path
from typing import Any

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.downstream.task import Task, save_task
from speechbrain_focalcodec.downstream.text import TextTokenizer

CODEC = Path(__file__).parent / "parity" / "offline_50hz"
TEXTS = ["GO ON", "NO", "STOP"]


def token_front_end(codec: Path = CODEC, **options: Any) -> dict[str, Any]:
    """Configuration of a token front end."""
    loaded = FocalCodec.from_pretrained(codec)
    return {
        "input": "tokens",
        "codec": str(codec),
        "codec_fingerprint": loaded.fingerprint,
        "sample_rate": loaded.sample_rate_input,
        "codebook_size": loaded.codebook_size,
        "token_rate": loaded.token_rate,
        **options,
    }


def save(folder: Path, config: dict[str, Any]) -> Path:
    """Write a task of random weights."""
    tokenizer = None
    if config["task"] != "classification":
        tokenizer = TextTokenizer.train(TEXTS, "char")
        config = config | {"num_pieces": tokenizer.size}
    task = Task(config)
    save_task(folder, task.config, dict(task.named_children()), tokenizer)
    return folder


def trained_asr(folder: Path, **options: Any) -> Path:
    """A recogniser."""
    network = {"name": "BiLSTM", "hidden_dim": 8, "num_layers": 1}
    config = {"task": "asr", "network": network, "front_end": token_front_end()}
    return save(folder, config | options)


def trained_classifier(folder: Path, **options: Any) -> Path:
    """A classifier."""
    network = {"name": "PooledBiLSTM", "hidden_dim": 8}
    config = {
        "task": "classification",
        "network": network,
        "classes": ["no", "yes"],
        "front_end": token_front_end(),
    }
    return save(folder, config | options)


def trained_tts(folder: Path, **options: Any) -> Path:
    """A synthesiser without voices."""
    model = {"dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16}
    config = {
        "task": "tts",
        "language_model": model,
        "front_end": token_front_end(freeze=True),
    }
    return save(folder, config | options)
