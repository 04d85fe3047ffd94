# make report   run the whole workbook (preset quick) and print the grade
# make demo     score the weights that come with it
# make test     prove that it is right
# make lab      open the notebooks in JupyterLab (as root, in a container: make lab ARGS=--allow-root)
# make bench    measure its speed beside the plain loop
# Each installs what it needs into .venv first. Another preset or data set: make report PRESET=full DATA=/path

PYTHON ?= python3
PRESET ?= quick
DATA ?=
BIN := .venv/bin

.PHONY: report demo test lab bench clean

report: .venv/installed
	$(BIN)/lab5 report --preset $(PRESET) $(if $(DATA),--data "$(DATA)")

demo: .venv/installed
	$(BIN)/lab5 demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

# half of the cores for a kernel: where two compute at once, more threads than cores wait for one another
lab: .venv/installed
	JUPYTER_PATH= OMP_NUM_THREADS=$$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )) $(BIN)/jupyter lab notebooks --ServerApp.ip=127.0.0.1 $(ARGS)

bench: .venv/installed
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.scaling

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("lab5 needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "Installing into .venv: about 6 GB, most of it torch; a few minutes, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache
