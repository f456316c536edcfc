# Everything runs in .venv, which is made from requirements.lock on first use
# and again when the lock or the metadata changes (some minutes, 6.2 GB: torch).
# The lock is whole, so that nothing else is installed. Two small libraries are
# compiled, which takes a C compiler.

PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# GB on the disk that the installation needs.
ROOM := 8

# What `make benchmark-mini` measures, and beside which codecs: those whose
# tools are installed (Debian's codec2 and opus-tools). Word error rates need
# WHISPER, a local checkpoint of openai-whisper.
DATA ?= ../shared/data/LibriSpeech/dev-many-speakers
PEERS ?= $(if $(shell command -v c2dec),codec2:700C codec2:1300 codec2:3200) \
	$(if $(shell command -v opusdec),opus:6)
MODELS ?= original focalcodec_mini_50hz focalcodec_mini_50hz_causal $(PEERS)
METRICS ?= default
WHISPER ?=
EVALUATION ?= results/evaluation/$(notdir $(DATA:/=))

# The model of `make demo`.
MODEL ?=

# What `make benchmark-speed` measures besides float32: bf16,int8,compile.
OPTIONS ?=
# What `make benchmark-training` takes of a batch; empty for whole batches.
BATCH_SIZE ?= 1
# What `make benchmark-long` reads: minutes of each speaker.
LONG_DATA ?= ../shared/data/LibriSpeech/train-clean-5

# Processes that `make test` runs, of 1 to 3 GB each. Each takes whole files of
# tests: what a file's tests share is made once.
WORKERS ?= 2

# What `make test-fast` runs: the core of most rooms, under 90 s on two cores.
FAST := architecture audio audio_formats bsq causal checkpoint data_chunks \
	data_corpora data_folder data_pipeline data_prepare data_speeds data_splits \
	downstream_token_scores entropy latency masking metrics metrics_registry \
	metrics_words parity parts sources spool streaming window_plan
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" \
	-n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# More threads than cores slow small models down.
export OMP_NUM_THREADS ?= 2
export MPLBACKEND := Agg
# The installation compiles nothing: what is used is compiled once, and kept
# even where the environment forbids it. PyTorch takes 3 s a process otherwise.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-fast test-slow lint format demo demo-stream lock \
	test-install benchmark-mini benchmark-speed benchmark-long benchmark-streaming \
	benchmark-tokenize benchmark-training clean

help: ## List the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) \
		| awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv from the lock file

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3 found: make PYTHON=..."; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@df -Pk . | awk 'NR == 2 && $$4 < $(ROOM) * 2^20 { \
		print "Only", int($$4 / 2^20), "GB are free; it needs $(ROOM)." }' >&2
	@"$(PYTHON)" -m venv $(VENV)
	@# The large ones one by one: their archives are not all kept at a time.
	@grep -E '^(nvidia-|torch=|triton)' requirements.lock \
		| xargs -n 1 $(PIP) install --no-deps --no-compile
	@$(PIP) install --no-deps --no-compile -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

test: lint ## Formatting, lint, types and the quick tests
	$(PYTEST)

test-fast: $(STAMP) ## The core's tests alone, to run often
	$(PYTEST) $(FAST:%=tests/test_%.py)

test-slow: $(STAMP) ## The tests that train, or take long otherwise
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP) ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and mend what lint can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP) ## Resynthesise a clip: make demo [AUDIO=my.wav]
	@$(BIN)/focalcodec demo $(if $(MODEL),--model "$(MODEL)") $(if $(AUDIO),"$(AUDIO)")

demo-stream: $(STAMP) ## The same as live audio, chunk by chunk
	@$(BIN)/focalcodec demo --stream $(if $(MODEL),--model "$(MODEL)") $(if $(AUDIO),"$(AUDIO)")

benchmark-mini: $(STAMP) ## Quality: make benchmark-mini [WHISPER=tiny.en.pt]
	$(BIN)/focalcodec evaluate "$(DATA)" \
		$(foreach model,$(MODELS),--model "$(model)") \
		--metrics "$(METRICS)" $(if $(WHISPER),--whisper "$(WHISPER)") \
		--out "$(EVALUATION)"

benchmark-speed: $(STAMP) ## Speed beside other codecs: [OPTIONS=bf16,int8]
	$(BIN)/python benchmarks/speed.py \
		$(if $(OPTIONS),--options "$(OPTIONS)" --data "$(DATA)") \
		--out results/speed.json

benchmark-long: $(STAMP) ## Tokens and memory of long audio (hours)
	$(BIN)/python benchmarks/long_audio.py context --data "$(LONG_DATA)" \
		--out results/context.json
	$(BIN)/python benchmarks/long_audio.py memory --out results/memory.json

benchmark-streaming: $(STAMP) ## Live chunks, and streams at once
	$(BIN)/python benchmarks/streaming.py --out results/streaming.json

benchmark-tokenize: $(STAMP) ## A corpus to tokens, beside a loop over files
	$(BIN)/python benchmarks/tokenize_corpus.py --data "$(DATA)" \
		$(if $(OPTIONS),--options "$(OPTIONS)") --out results/tokenize.json

benchmark-training: $(STAMP) ## Speed and memory of training: [BATCH_SIZE=1]
	$(BIN)/python benchmarks/training_speed.py \
		$(if $(BATCH_SIZE),--batch-size "$(BATCH_SIZE)") \
		--out results/training_speed.json

# What pip chooses today, and the oldest torch that the metadata admits. Each
# environment takes 6 GB of the temporary folder while it is used.
OLDEST_TORCH = $(shell sed -n 's/^ *torch>=\([0-9.]*\).*/\1/p' setup.cfg)
test-install: $(STAMP) ## Use the wheel in new environments: [PYTHON=python3.12]
	@rm -rf dist
	@$(BIN)/python -m build -n -w -o dist . >/dev/null
	"$(PYTHON)" tests/check_install.py dist/*.whl
	"$(PYTHON)" tests/check_install.py dist/*.whl torch==$(OLDEST_TORCH)

# resemblyzer asks for typing, of which no version is for a Python of today.
lock: $(STAMP) ## Write requirements.lock anew from setup.cfg
	@$(PIP) install uv
	$(BIN)/uv pip compile setup.cfg --extra test --upgrade \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-header --no-annotate --no-emit-package speechbrain_focalcodec \
		--no-emit-package typing -o requirements.lock -q

clean: ## Remove .venv and what the tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
