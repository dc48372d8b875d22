# The two commands are `make run` and `make test`; each makes the environment if it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
unexport PYTHONDONTWRITEBYTECODE  # every stage is a process that reads the code: it is compiled once

.PHONY: run test check lint ui up deploy trigger starter environment clean

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	-$(BIN)/python -m flows.database
	@touch $@

run: $(READY)  ## the whole road; PRESET=laptop DATA=/folder for real data
	$(BIN)/python -m flows pipeline $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data $(DATA))

test: $(READY) lint  ## lint, types, tests
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(READY)  ## the MLflow UI on loopback
	$(BIN)/python -m flows ui

up: $(READY)  ## Prefect, MLflow and a worker on loopback until Ctrl-C; PREFECT_PORT=4200 MLFLOW_PORT=5000
	@$(BIN)/python -m flows up $(if $(PREFECT_PORT),--prefect-port $(PREFECT_PORT)) $(if $(MLFLOW_PORT),--mlflow-port $(MLFLOW_PORT))

deploy: $(READY)  ## register the deployments of prefect.yaml with the server of `make up`
	$(BIN)/python -m flows deploy

trigger: $(READY)  ## start a run of a deployment: NAME=pipeline
	$(BIN)/python -m flows trigger $(NAME)

clean:  ## remove results, checkpoints and logs; data/, the environment, models, runs and DVC's versions stay
	rm -rf artifacts .state/baselines .state/checkpoints .state/logs .state/prefect

starter: $(READY)  ## train the starter model anew from real tweets, DATA=/folder; hours on two cores, resumable
	$(BIN)/deepmoji preset starter $(if $(DATA),--data $(DATA))
	$(BIN)/dvc repro pretrain
	$(BIN)/deepmoji compress artifacts/pretrained deepmoji/data/starter --storage int8 --note presets/starter.md
