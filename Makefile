# Russet's chores; `make` alone lists them. Written for GNU make 3.81, which macOS brings.

VENV ?= .venv
PARITY_VENV ?= .venv-parity
MODEL ?= smollm2-135m
ARGS ?=
# PyTorch without CUDA; PyPI's own is that on a Mac, and several gigabytes on Linux.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

export PYTHON
# From the command line only, for zsh users may have a PROMPT in their environment; with $ as it was typed.
ifeq ($(origin PROMPT),command line)
export RUSSET_PROMPT := $(value PROMPT)
endif

.PHONY: help chat test lint bench parity clean

help:
	@echo "make chat                  talk with a small model; the first time, everything is fetched"
	@echo "make chat PROMPT='...'     answer once"
	@echo "make test                  run the tests                       (ARGS='-k cache' picks some)"
	@echo "make lint                  ruff and pyright"
	@echo "make bench                 time Russet beside mlx-lm           (ARGS='--json')"
	@echo "make parity                compare with PyTorch and others     (about 1 GB to fetch)"
	@echo "make clean                 delete the environments; models stay, see 'russet models'"
	@echo "PYTHON=..., VENV=..., MODEL=... say which; PYTHON needs 3.11 or later."

chat: $(VENV)/.russet
	@$(VENV)/bin/russet chat -m "$(MODEL)" $${RUSSET_PROMPT:+-p "$$RUSSET_PROMPT"}

test: $(VENV)/.test
	$(VENV)/bin/python -P -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

bench: $(VENV)/.test
	$(VENV)/bin/russet bench ttft -m "$(MODEL)" --prompt-lengths 128,512 --peer mlx-lm $(ARGS)

parity: $(PARITY_VENV)/.parity
	$(PARITY_VENV)/bin/python tests/parity/run.py $(ARGS)

clean:
	rm -rf "$(VENV)" "$(PARITY_VENV)"

# A stamp says that the environment holds what pyproject.toml asks for; the code itself is used in place.

%/bin/python:
	@.ci/venv "$*"

$(VENV)/.russet: pyproject.toml $(VENV)/bin/python
	@echo "Installing Russet in $(VENV)"
	@.ci/install "$(VENV)" -e .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/bin/python
	@echo "Installing Russet and its test tools in $(VENV)"
	@.ci/install "$(VENV)" -e ".[test]"
	@touch $@ $(VENV)/.russet

$(VENV)/.dev: pyproject.toml $(VENV)/bin/python
	@echo "Installing Russet and its development tools in $(VENV)"
	@.ci/install "$(VENV)" -e ".[dev]"
	@touch $@ $(VENV)/.test $(VENV)/.russet

# Always pip, which takes torch from the other index only where its version there is the later one.
$(PARITY_VENV)/.parity: pyproject.toml tests/parity/requirements.txt $(PARITY_VENV)/bin/python
	@echo "Installing Russet and its references in $(PARITY_VENV)"
	@.ci/install "$(PARITY_VENV)" pip
	@$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
		--extra-index-url "$(TORCH_INDEX)" `grep '^torch==' tests/parity/requirements.txt`
	@$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e . \
		-r tests/parity/requirements.txt
	@touch $@
