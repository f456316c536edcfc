"""Makes what later versions must still load: models, runs, tokens and more.

The files beside this script were made by version 0.1.0 with

    PYTHONPATH=.:tests python tests/earlier/make.py

and tests/test_earlier_versions.py loads them with today's code. They stay as
they are: running the script again replaces them by what today's code writes.

All models are tiny, with random weights. `runs.json` has the commands of the
trainings. Each ran one epoch on tones and noise of tests/make_corpus.py; its
script, its logs of the machine and, of two tasks, its checkpoints were deleted.
Paths of the machine are now /elsewhere and /package. When a class that
`runs.json` names moves, its name there follows, as in a user's command; what
the runs have written stays.

`speech.wav` (a rising tone and noise) went through models, exports and tasks.
`expected.npz` and `expected.json` hold the results. The test gets its results
by the same functions.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from make_corpus import make_corpus
from typer.testing import CliRunner

from speechbrain_focalcodec import FocalCodec, OnnxFocalCodec
from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.downstream.interfaces import (
    TokenASR,
    TokenClassifier,
)
from speechbrain_focalcodec.downstream.synthesis import TokenTTS
from speechbrain_focalcodec.voice import VoiceReference

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = json.loads((HERE / "runs.json").read_text())
# Those whose checkpoints are kept; of the other tasks the trained model is.
RESUMED = [*RUNS["stages"], "asr"]
MODELS = ("offline", "causal")
# Of the samples of a waveform one in so many is kept.
SHOWN = 64
TOKEN_FILES = ("speech.focal", "entropy.focal", "speech.npz")
TASKS = {"asr": TokenASR, "speaker_id": TokenClassifier, "tts": TokenTTS}
# The model that has the parts which a run did not train.
BASES = {
    kind: "offline" if "MODELS/offline.yaml" in "".join(command) else "causal"
    for kind, command in RUNS["stages"].items()
}
FOCAL = {
    "hidden_dims": [8],
    "focal_window": 3,
    "focal_level": 1,
    "focal_factor": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "offline": {
        "encoder_name": "LogMel",
        "encoder_config": {"n_mels": 8, "n_fft": 640},
        "compressor_config": {
            "input_dim": 8,
            "output_dim": 5,
            "downscale_factors": [1],
            **FOCAL,
        },
        "quantizer_config": {"codebook_size": 32},
        "decompressor_config": {
            "input_dim": 5,
            "output_dim": 8,
            "upscale_factors": [1],
            **FOCAL,
        },
        "decoder_name": "Vocos",
        "decoder_config": {
            "input_dim": 8,
            "num_layers": 1,
            "dim": 4,
            "ffn_dim": 8,
            "n_fft": 640,
        },
    },
    "causal": {
        "encoder_config": {
            "hidden_dims": [4, 4, 4],
            "kernel_sizes": [10, 8, 8],
            "strides": [5, 8, 8],
            "num_layers": 1,
            "dim": 8,
            "ffn_dim": 8,
            "num_heads": 2,
            "conv_pos": 4,
            "conv_pos_groups": 2,
            "num_buckets": 8,
            "max_distance": 16,
            "causal": True,
            "window_size": 16,
        },
        "compressor_config": {
            "input_dim": 8,
            "output_dim": 5,
            "downscale_factors": [1],
            "causal": True,
            "window_size": 16,
            **FOCAL,
        },
        "quantizer_config": {"codebook_size": 32},
        "decompressor_config": {
            "input_dim": 5,
            "output_dim": 8,
            "upscale_factors": [1],
            "causal": True,
            "window_size": 16,
            "last_window_size": 16,
            **FOCAL,
        },
        "decoder_name": "WaveNeXt",
        "decoder_config": {
            "input_dim": 8,
            "num_layers": 1,
            "dim": 4,
            "ffn_dim": 8,
            "causal": True,
        },
    },
}


# What the script and the test do with the files; the current folder holds them


def focalcodec(*arguments: str | Path) -> str:
    """Run a command and return what it printed."""
    result = CliRunner().invoke(app, [str(x) for x in arguments])
    if result.exit_code:
        raise RuntimeError(f"{arguments}: {result.output}")
    return result.output


def speech() -> torch.Tensor:
    """The waveform that everything was given [1, T]."""
    sig, _ = soundfile.read("speech.wav", dtype="float32")
    return torch.from_numpy(sig)[None]


@torch.no_grad()
def codec_figures(codec: Any) -> dict[str, np.ndarray]:
    """Tokens of the speech, and some samples of what they decode to."""
    toks, _ = codec.encode(speech())
    sig, _ = codec.decode(toks)
    return {"toks": toks.numpy(), "sig": sig[0, ::SHOWN].numpy()}


def onnx_figures(name: str) -> dict[str, np.ndarray]:
    """The same of exported graphs."""
    codec = OnnxFocalCodec(Path("onnx_models") / name)
    toks, _ = codec.encode(speech().numpy())
    sig, _ = codec.decode(toks)
    return {"toks": toks, "sig": sig[0, ::SHOWN]}


def decoded_file(name: str, out: Path) -> dict[str, np.ndarray]:
    """What `focalcodec decode` makes of a token file."""
    path = out / f"{name}.wav"
    focalcodec("decode", Path("tokens") / name, path, "--model=models/offline")
    sig, _ = soundfile.read(path, dtype="float32")
    return {"sig": sig[::SHOWN]}


def dataset_figures() -> dict[str, np.ndarray]:
    """Rows of the token dataset."""
    fingerprint = FocalCodec.from_pretrained("models/offline").fingerprint
    dataset = TokenDataset(
        "token_dataset",
        output_keys=["id", "tokens", "duration"],
        fingerprint=fingerprint,
    )
    rows = [dataset[i] for i in range(len(dataset))]
    return {
        "ids": np.array([row["id"] for row in rows]),
        "toks": torch.cat([row["tokens"] for row in rows]).numpy(),
        "durations": np.array([row["duration"] for row in rows]),
    }


@torch.no_grad()
def converted() -> dict[str, np.ndarray]:
    """The speech in the voice of the reference."""
    codec = FocalCodec.from_pretrained("models/offline")
    reference = VoiceReference.load("voice.safetensors")
    sig = codec.convert_voice(speech(), reference)
    return {"sig": sig[0, ::SHOWN].numpy()}


def exported(kind: str, out: Path) -> dict[str, np.ndarray]:
    """What the model of `focalcodec export` makes of the speech."""
    folder = out / kind
    focalcodec("export", folder, f"models/{BASES[kind]}", f"runs/{kind}")
    return codec_figures(FocalCodec.from_pretrained(folder))


def trained_task(kind: str) -> Any:
    """A trained task, and its codec, whose place has changed."""
    return TASKS[kind].from_pretrained(
        f"runs/{kind}/model",
        run_opts={"device": "cpu"},
        codec="models/offline",
    )


@torch.no_grad()
def task_figures(task: Any) -> dict[str, np.ndarray]:
    """What a trained task makes of the speech, or of a text."""
    if isinstance(task, TokenTTS):
        said = task.generate("utterance", seed=0, max_seconds=0.5)
        return {"toks": said.toks.numpy(), "sig": said.sig[::SHOWN].numpy()}
    if isinstance(task, TokenASR):
        scores = task.scores(*task.prepare(speech()))
        return {
            "text": np.array(task.transcribe_batch(speech())),
            "scores": scores[0].numpy(),
        }
    (found,) = task.classify_batch(speech())
    probabilities = sorted(found.probabilities.items())
    return {
        "classes": np.array([name for name, _ in probabilities]),
        "probabilities": np.array([value for _, value in probabilities]),
    }


def train(kinds: Iterable[str], epochs: int, folder: Path) -> dict[str, str]:
    """Start runs, or resume those that are there; errors by kind.

    `folder` is for the corpora, which are made when they are missing.
    """
    splits = ["train-tiny", "dev-tiny"]
    for name in ("LibriSpeech", "LibriTTS", "AN4"):
        if not (folder / name).exists():
            make_corpus(name, folder / name, splits, 2, 3, duration=0.6)
    path = folder / "runs.json"
    commands = [command(kind, epochs, folder) for kind in kinds]
    path.write_text(json.dumps(commands))
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_recipes.py"), str(path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    return json.loads(path.with_name("errors.json").read_text())


def command(kind: str, epochs: int, folder: Path) -> dict[str, Any]:
    """One run of tests/run_recipes.py."""
    common = [
        *RUNS["common"],
        f"--output_folder=runs/{kind}",
        f"--number_of_epochs={epochs}",
    ]
    if kind in RUNS["stages"]:
        corpus, recipes = "LibriSpeech", "train"
        yaml, *options = RUNS["stages"][kind]
        models = str(HERE / "models")
        options = [x.replace("MODELS", models) for x in options]
        options += ["--valid_splits=[dev-tiny]", "--num_valid=0"]
        options += ["--num_samples=0"]
    else:
        corpus, yaml, *options = RUNS["tasks"][kind]
        recipes = "downstream"
    return {
        "name": kind,
        "script": str(ROOT / "recipes" / corpus / "train.py"),
        "arguments": [
            str(ROOT / "hparams" / recipes / yaml),
            f"--data_folder={folder / corpus.split('/')[0]}",
            *common,
            *options,
        ],
    }


def validations(kind: str) -> list[dict[str, Any]]:
    """Step and loss of each validation in a run's log."""
    lines = (Path("runs") / kind / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [
        {key: line[key] for key in ("epoch", "step", "loss")}
        for line in found
        if line["split"] == "valid"
    ]


# What only the script does


def make_models() -> None:
    sig = rising_tone()
    soundfile.write("speech.wav", sig, 16000)
    for name in MODELS:
        # Most random models give the same few tokens again and again.
        codecs = [seeded(name, seed) for seed in range(50)]
        codec = max(codecs, key=different_tokens)
        codec.save_pretrained(f"{name}_saved")
        # With the hyperparams.yaml of from_hparams.
        focalcodec("export", f"models/{name}", f"{name}_saved")
        shutil.rmtree(f"{name}_saved")


def seeded(name: str, seed: int) -> FocalCodec:
    torch.manual_seed(seed)
    return FocalCodec(CONFIGS[name], name=name).eval()


def different_tokens(codec: FocalCodec) -> int:
    return len(np.unique(codec_figures(codec)["toks"]))


def rising_tone() -> np.ndarray:
    """A rising tone, and noise."""
    time = np.arange(8000) / 16000
    tone = np.sin(2 * np.pi * (150 + 200 * time) * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return 0.3 * tone * np.sin(2 * np.pi * 3 * time) + 0.05 * noise


def make_tokens() -> None:
    model = "--model=models/offline"
    Path("tokens").mkdir()
    for name in TOKEN_FILES:
        extra = ["--entropy"] if name.startswith("entropy") else []
        focalcodec("encode", "speech.wav", f"tokens/{name}", model, *extra)
    Path("corpus").mkdir()
    sig, rate = soundfile.read("speech.wav")
    for number, size in enumerate((8000, 6000, 5000)):
        soundfile.write(f"corpus/{number}.wav", sig[:size], rate)
    focalcodec("tokenize", "corpus", "token_dataset", model, "--workers=0")
    shutil.rmtree("corpus")


def make_rest() -> None:
    codec = FocalCodec.from_pretrained("models/offline")
    VoiceReference.from_sigs(codec, speech()).save("voice.safetensors")
    for name in MODELS:
        focalcodec(
            "export-onnx", f"onnx_models/{name}", f"--model=models/{name}"
        )


def figures(out: Path) -> dict[str, dict[str, Any]]:
    """All figures but those of resumed runs."""
    made: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        codec = FocalCodec.from_pretrained(f"models/{name}")
        made[f"models/{name}"] = codec_figures(codec)
        made[f"onnx/{name}"] = onnx_figures(name)
    for name in TOKEN_FILES:
        made[f"tokens/{name}"] = decoded_file(name, out)
    made["token_dataset"] = dataset_figures()
    made["voice"] = converted()
    made |= {f"export/{kind}": exported(kind, out) for kind in RUNS["stages"]}
    for kind in TASKS:
        made[f"tasks/{kind}"] = task_figures(trained_task(kind))
    return made


def strip(folder: Path, replace: dict[str, str]) -> None:
    """Delete what a resumed run does not need, and replace paths in texts."""
    runs = folder / "runs"
    for name in ("log.txt", "env.log", "train.py"):
        for path in runs.glob(f"*/{name}"):
            path.unlink()
    for name in set(RUNS["tasks"]) - set(RESUMED):
        shutil.rmtree(runs / name / "save")
    # The corpus is gone, so that no run of `tokenize` can go on.
    shutil.rmtree(folder / "token_dataset" / "work")
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".json", ".jsonl", ".txt"):
            text = path.read_text()
            for old, new in replace.items():
                text = text.replace(old, new)
            path.write_text(text)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        data, out, made = here / "data", here / "out", here / "results"
        for folder in (data, out, made):
            folder.mkdir()
        os.chdir(made)
        make(here, data)
        figures_of_all = figures(out)
        for path in made.iterdir():
            copy(path, HERE / path.name)
        arrays = {
            f"{name}/{key}": value
            for name, values in figures_of_all.items()
            for key, value in values.items()
        }
        np.savez_compressed(HERE / "expected.npz", **arrays)
        assert train(RESUMED, 2, data) == {}
        expected = {
            "fingerprints": {
                name: FocalCodec.from_pretrained(f"models/{name}").fingerprint
                for name in MODELS
            },
            "validations": {kind: validations(kind) for kind in RESUMED},
        }
        text = json.dumps(expected, indent=2) + "\n"
        (HERE / "expected.json").write_text(text)
        os.chdir(HERE)


def make(here: Path, data: Path) -> None:
    """Make all files in the current folder."""
    make_models()
    # The commands of the trainings name the models of this folder.
    copy(Path("models"), HERE / "models")
    assert train([*RUNS["stages"], *RUNS["tasks"]], 1, data) == {}
    make_tokens()
    make_rest()
    strip(Path(), {str(here): "/elsewhere", str(ROOT): "/package"})


def copy(source: Path, to: Path) -> None:
    if source.is_file():
        shutil.copy(source, to)
        return
    if to.name != "models":
        shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
