"""The recipes: their table, their YAMLs, and short runs of the small ones.

One row of tests/recipes/*.csv is one training YAML of one recipe: of the codec
(each YAML of hparams/train in each recipe that trains it), or of a task on
tokens (each YAML of hparams/downstream once). The flags and checks of a row are
those of SpeechBrain's recipe tests; ``data_folder`` and ``output_folder`` are
added here. The data is a corpus of tones with the splits train-tiny and
dev-tiny. For speed, flags give most rows short segments, a discriminator of
tests/small_discriminator.py, tiny networks and few samples or none to write;
test_training.py trains with HiFi-GAN's.
"""

import ast
import csv
import functools
import inspect
import json
import os
import pydoc
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import speechbrain as sb
from make_corpus import make_corpus
from own_script import load_yaml
from own_script import read_yaml as resolved

from speechbrain_focalcodec.codec import FocalCodec

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "Task,Dataset,Script_file,Hparam_file,Data_prep_file,Readme_file,"
    "Result_url,HF_repo,test_debug_flags,test_debug_checks"
).split(",")
KEYS = (
    "seed data_folder output_folder save_folder train_log train_splits "
    "valid_splits num_valid batch_size num_workers number_of_epochs"
).split()
PLACEHOLDERS = ("data_folder", "start_from", "encoder_source")
SECTIONS = (
    "Seed needs to be set at top of yaml",
    "Folders",
    "Data",
    "Training",
    "Model",
    "Losses",
    "Optimiser and learning rate",
    "Logging and checkpoints",
)
COMPARE = {
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
    "==": lambda value, bound: value == bound,
}


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


TABLES = sorted((ROOT / "tests" / "recipes").glob("*.csv"))
ROWS = [row for table in TABLES for row in read_rows(table)]
# Each YAML once, and one of the codec's on each corpus (they are the same for
# all).
TRAINED = [
    row
    for row in ROWS
    if row["Task"] != "Codec"
    or row["Dataset"] == "Folder"
    or row["Hparam_file"].endswith("/mini_quantizer.yaml")
]


def name_of(row):
    return f"{row['Dataset']}-{Path(row['Hparam_file']).stem}"


each_row = pytest.mark.parametrize("row", ROWS, ids=name_of)


def parse_checks(text):
    """Return the checks of a row as pairs of name and arguments."""
    checks = re.findall(r"(\w+)=\[([^\]]*)\]", text)
    return [
        (name, [argument.strip() for argument in arguments.split(",")])
        for name, arguments in checks
    ]


def failed_checks(text, folder):
    """Return what a run's output folder fails in, as messages."""
    failures = []
    for name, arguments in parse_checks(text):
        if name == "file_exists":
            failures += [
                f"{file} is missing"
                for file in arguments
                if not (folder / file).is_file()
            ]
        elif name == "performance_check":
            failures += failed_performance(folder, *arguments)
        else:
            failures.append(f"{name} is not a check")
    return failures


def failed_performance(folder, file, variable, condition, epoch):
    """Look up a value in the lines of a log that have the epoch."""
    sign, bound = re.fullmatch(r"([<>=]+)\s*(.+)", condition).groups()
    lines = (folder / file).read_text(encoding="utf-8").splitlines()
    values = [
        float(value)
        for line in lines
        if re.search(rf"\b{re.escape(epoch)}\b", line)
        for value in re.findall(rf"\b{re.escape(variable)}: ([^\s,]+)", line)
    ]
    if not values:
        return [f"{file} has no {variable} at {epoch}"]
    return [
        f"{variable} is {value} at {epoch}, not {condition}"
        for value in values
        if not COMPARE[sign](value, float(bound))
    ]


@functools.cache
def read_yaml(path):
    """Return a YAML of a row, references resolved and tags kept."""
    codec = Path(path).parent.name == "train"
    names = PLACEHOLDERS if codec else PLACEHOLDERS[:1]
    given = "\n".join(f"{key}: given" for key in names)
    return resolved(ROOT / path, given)


def tagged_nodes(node):
    """Yield (kind, target, node) of tags such as ``!new:module.Class``."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag and ":" in tag:
        kind, _, target = tag.partition(":")
        yield kind, target, node
    children = node.values() if isinstance(node, dict) else node
    if isinstance(node, dict | list):
        for child in children:
            yield from tagged_nodes(child)


@functools.cache
def keys_used(source, context=ast.Load):
    """Return the keys K of ``hparams["K"]`` and ``hparams.K`` in a source.

    With ast.Store those that are set.
    """

    def is_hparams(node):
        name = getattr(node, "id", getattr(node, "attr", None))
        return name in ("hparams", "hparams_dict")

    keys = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        wanted = isinstance(getattr(node, "ctx", None), context)
        if not wanted or not is_hparams(getattr(node, "value", None)):
            continue
        if isinstance(node, ast.Attribute):
            keys.add(node.attr)
        elif isinstance(getattr(node, "slice", None), ast.Constant):
            keys.add(node.slice.value)
    return keys - {"get", "items", "keys", "values", "pop", "update"}


def yamls_in(folder):
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hparams" / folder).glob("*.yaml")
    )


def test_each_recipe_has_a_table_and_each_yaml_a_row():
    recipes = {path.name for path in (ROOT / "recipes").iterdir()}
    assert {table.stem for table in TABLES} == recipes
    tasks = []
    for table in TABLES:
        rows = read_rows(table)
        assert list(rows[0]) == COLUMNS
        assert {row["Dataset"] for row in rows} == {table.stem}
        codec = [r["Hparam_file"] for r in rows if r["Task"] == "Codec"]
        trains = (ROOT / "recipes" / table.stem / "train.py").exists()
        assert sorted(codec) == (yamls_in("train") if trains else [])
        tasks += [r for r in rows if r["Task"] != "Codec"]
    assert sorted(r["Hparam_file"] for r in tasks) == yamls_in("downstream")
    scripts = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "recipes").glob("*/*/train.py")
    }
    assert {row["Script_file"] for row in tasks} == scripts
    for row in tasks:
        assert row["Script_file"].split("/")[2] == row["Task"]


@each_row
def test_the_files_of_a_row_exist(row):
    for column in COLUMNS:
        if column.endswith("_file"):
            assert (ROOT / row[column]).is_file(), row[column]


@each_row
def test_a_row_has_flags_and_checks(row):
    assert "--debug" in shlex.split(row["test_debug_flags"])
    names = {name for name, _ in parse_checks(row["test_debug_checks"])}
    assert names == {"file_exists", "performance_check"}


@each_row
def test_the_readme_shows_how_to_train(row):
    readme = (ROOT / row["Readme_file"]).read_text(encoding="utf-8")
    assert row["Script_file"] in readme
    assert row["Data_prep_file"] in readme


@each_row
def test_a_yaml_names_what_exists(row):
    """Each tag's target can be imported and takes the arguments given."""
    hparams = read_yaml(row["Hparam_file"])
    assert hparams.keys() >= set(KEYS)
    tags = list(tagged_nodes(hparams))
    assert tags
    for kind, target, node in tags:
        found = pydoc.locate(target)
        assert found is not None, f"{kind}:{target}"
        if kind not in ("!new", "!name", "!apply"):
            continue
        try:
            signature = inspect.signature(found)
        except ValueError:
            continue  # a built-in that does not tell its parameters
        bind = signature.bind if kind != "!name" else signature.bind_partial
        if isinstance(node, dict):
            bind(**node)
        elif isinstance(node, list):
            bind(*node)


@each_row
def test_a_planned_learning_rate_comes_to_its_end(row):
    """Whatever steps the data gives an epoch."""
    hparams = read_yaml(row["Hparam_file"])
    if "lr_schedule" in hparams:
        total = hparams["lr_schedule"]["total_steps"]
        assert total == hparams["total_steps"]
        assert total == hparams["optimizer_step_limit"]
        assert total < hparams["number_of_epochs"]


@each_row
def test_a_yaml_defines_the_keys_that_are_used(row):
    """Those of the script, and of the package's classes the YAML names."""
    hparams = read_yaml(row["Hparam_file"])
    script = (ROOT / row["Script_file"]).read_text(encoding="utf-8")
    missing = {row["Script_file"]: keys_used(script) - hparams.keys()}
    package = "speechbrain_focalcodec."
    packages = (f"{package}training", f"{package}downstream")
    for _, target, _ in tagged_nodes(hparams):
        found = pydoc.locate(target)
        if not target.startswith(packages) or not inspect.isclass(found):
            continue
        for parent in inspect.getmro(found):
            if parent.__module__.startswith(packages):
                source = inspect.getsource(parent)
                # What a task learns of its data it adds itself.
                known = hparams.keys() | keys_used(source, ast.Store)
                used = keys_used(source) - known
                missing[parent.__qualname__] = used
    assert not any(missing.values()), missing


YAMLS = sorted({row["Hparam_file"] for row in ROWS})


@pytest.mark.parametrize("path", YAMLS)
def test_a_yaml_loads_with_plain_hyperpyyaml(path, tmp_path):
    """At the size of its row; sections are in the same order in all."""
    text = (ROOT / path).read_text(encoding="utf-8")
    flags = next(
        r["test_debug_flags"] for r in ROWS if r["Hparam_file"] == path
    )
    _, _, overrides = sb.parse_arguments([path, *shlex.split(flags)])
    overrides += f"\ndata_folder: data\noutput_folder: {tmp_path}\n"
    hparams = load_yaml(ROOT / path, overrides)
    assert isinstance(hparams["codec"], FocalCodec)
    includes = re.findall(r"^(\w+): !include:", text, re.M)
    assert includes == ["model"] * ("/train/" in path)
    sections = re.findall(r"^\n# (.*)$", text, re.M)
    assert sections == [x for x in SECTIONS if x in sections]
    assert set(SECTIONS) - set(sections) <= {"Losses"}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("augmentation", ["DropFreq", "DropChunk"]),
        ("speed_perturbation", ["SpeedPerturb"]),
    ],
)
def test_an_augmentation_is_one_switch_away(name, kinds):
    path = ROOT / "hparams" / "train" / "mini_quantizer.yaml"
    switch = f"augmentation: !include:../{name}.yaml"
    hparams = load_yaml(path, f"data_folder: data\n{switch}")
    names = [
        type(x).__name__ for x in hparams["augmentation"].augmentations.values()
    ]
    assert names == kinds


@functools.cache
def words_read(path):
    """Names that a source reads keys by: constants and attributes."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {n.value for n in nodes if isinstance(n, ast.Constant)}
    return texts | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


@pytest.mark.parametrize("path", YAMLS)
def test_a_yaml_has_no_key_that_nothing_reads(path):
    """Not the script, a Brain, SpeechBrain, or another key."""
    text = (ROOT / path).read_text(encoding="utf-8")
    sources = [
        source
        for room in ("training", "downstream")
        for source in (ROOT / "speechbrain_focalcodec" / room).rglob("*.py")
    ]
    scripts = {
        ROOT / r["Script_file"] for r in ROWS if r["Hparam_file"] == path
    }
    read = set().union(*map(words_read, [*sources, *scripts]))
    read |= set(re.findall(r"<(\w+)", text))
    read |= sb.RunOptions().as_dict().keys()
    read |= {f"{split}_data_options" for split in ("train", "valid", "test")}
    keys = set(re.findall(r"^(\w+):", text, re.M))
    assert keys - read == {"__set_seed"}


def test_a_copied_script_trains_elsewhere(corpora, tmp_path):
    """Two steps of a copy of a script, its YAML and its model."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "recipes" / "Folder" / "train.py", project)
    text = (ROOT / "hparams" / "train" / "mini_quantizer.yaml").read_text()
    (project / "my.yaml").write_text(text.replace("../model/", ""))
    shutil.copy(
        ROOT / "hparams" / "model" / "focalcodec_mini_50hz.yaml", project
    )
    options = [
        *("--total_steps=2", "--batch_size=2", "--num_samples=0"),
        *("--train_splits=[train-tiny]", "--num_valid=2", "--device=cpu"),
        "--train_data_options={segment_samples: 8000}",
        f"--data_folder={corpora['Folder']}",
    ]
    result = subprocess.run(
        [sys.executable, "train.py", "my.yaml", *options],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    run = project / "results" / "mini_quantizer"
    assert "steps: 2," in (run / "train_log.txt").read_text()
    script = (project / "train.py").read_text()
    assert (run / "train.py").read_text() == script


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    splits = ["train-tiny", "dev-tiny"]
    made = {}
    for name in (table.stem for table in TABLES):
        # Three of a speaker: to train, to validate and to test on.
        made[name] = make_corpus(name, folder / name, splits, num_utterances=3)
    # Its synthesiser takes LibriSpeech from beside it.
    return made | {"AN4": folder}


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    """`TRAINED` in a process of their own: a folder, and errors by name."""
    folder = tmp_path_factory.mktemp("trained")
    runs = [
        {
            "name": name_of(row),
            "script": row["Script_file"],
            "arguments": [
                row["Hparam_file"],
                f"--data_folder={corpora[row['Dataset']]}",
                f"--output_folder={folder / name_of(row)}",
                *shlex.split(row["test_debug_flags"]),
            ],
        }
        for row in TRAINED
    ]
    path = folder / "runs.json"
    path.write_text(json.dumps(runs))
    result = subprocess.run(
        [sys.executable, "tests/run_recipes.py", str(path)],
        cwd=ROOT,
        env=os.environ
        | {
            "CUDA_VISIBLE_DEVICES": "",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    print(result.stdout)
    return folder, json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize("row", TRAINED, ids=name_of)
def test_each_yaml_trains(row, trained):
    """At the size that the flags of its row give it."""
    folder, errors = trained
    assert name_of(row) not in errors, errors[name_of(row)]
    # A --debug run has a folder of its own.
    run = folder / f"{name_of(row)}_debug"
    assert failed_checks(row["test_debug_checks"], run) == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_the_preparation_script(table, corpora, tmp_path, monkeypatch):
    row = read_rows(table)[0]

    def prepare(*splits):
        script = str(ROOT / row["Data_prep_file"])
        folders = map(str, (corpora[table.stem], tmp_path))
        monkeypatch.setattr(
            sys, "argv", [script, *folders, "--splits", *splits]
        )
        runpy.run_path(script, run_name="__main__")

    prepare("train-tiny", "dev-tiny")
    for split in ["train-tiny", "dev-tiny"]:
        assert (tmp_path / f"{split}.json").is_file()
    with pytest.raises(SystemExit, match="lacks test-tiny; found: dev-tiny, t"):
        prepare("test-tiny")


@pytest.mark.parametrize(
    "checks, failures",
    [
        ("file_exists=[log.txt]", []),
        ("file_exists=[log.txt, no.txt]", ["no.txt is missing"]),
        ("performance_check=[log.txt, train loss, <3, epoch: 1]", []),
        ("performance_check=[log.txt, valid loss, >=2.5e-1, epoch: 10]", []),
        (
            "performance_check=[log.txt, train loss, <3, epoch: 10]",
            ["train loss is nan at epoch: 10, not <3"],
        ),
        (
            "file_exists=[a] performance_check=[log.txt, STOI, >0, epoch: 1]",
            ["a is missing", "log.txt has no STOI at epoch: 1"],
        ),
        ("perfect=[yes]", ["perfect is not a check"]),
    ],
)
def test_checks_find_what_is_wrong(tmp_path, checks, failures):
    (tmp_path / "log.txt").write_text(
        "epoch: 1, lr: 1.00e-03 - train loss: 2.50 - valid loss: 7.5e-01\n"
        "epoch: 10, lr: 1.00e-03 - train loss: nan - valid loss: 2.5e-01\n"
    )
    assert failed_checks(checks, tmp_path) == failures


def test_keys_used_are_found():
    source = """
    def method(self, hparams):
        hparams["set"] = hparams["read"] + self.hparams.attribute
        return hparams.get("optional"), getattr(self.hparams, "optional", 1)
    """
    assert keys_used(source) == {"read", "attribute"}
    assert keys_used(source, ast.Store) == {"set"}
