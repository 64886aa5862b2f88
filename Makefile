# make demo   fresh machine: environment, sample study, the main job, and what came out
# make test   fresh machine: environment with the test extra, then the tests

PYTHON ?= python3
# A CPU build where the platform has one; for CUDA see docs/install.md.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet

export MPLBACKEND ?= Agg

.PHONY: demo test check types lint docs clean

demo: $(VENV)/.core
	$(BIN)/slice3d sample $(or $(SAMPLE),build/sample_data)
	$(BIN)/slice3d info $(or $(SAMPLE),build/sample_data)/dicom
	$(BIN)/slice3d segment $(or $(SAMPLE),build/sample_data)/dicom --organ liver --out out/demo \
	    --reference $(or $(SAMPLE),build/sample_data)/truth.nii.gz

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: lint types

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# torch comes first and alone: asked for together with the rest, pip may choose a build with gigabytes of CUDA libraries.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt "$(TORCH)"
	touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build out
