# For a new machine: `make demo`, `make check` and `make test`. Each makes .venv and installs what it needs into it;
# again only when a requirements file changes. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet
# A process for each core, at most four; the tests of a file share what it compiles, so they stay together.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# Huge pages, and memory kept between steps: a third less time on CPUs (docs/performance.md). Only glibc reads it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000

.PHONY: demo check lint test slow coverage docs
.DELETE_ON_ERROR:

# The main job: prepares the synthetic data set, trains, and prints the table of both rankings.
demo: $(VENV)/.installed
	$(VENV)/bin/python -m cacenet_jax.main --config=configs/synthetic.py --workdir=workdirs/synthetic

# The quick tier, before each commit: under two minutes on two cores.
check: lint
	$(PYTEST) @tests/quick.txt

# What must hold of the text alone: style, layers of imports, types. The rules of tests/test_house.py are in both tiers.
lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=. $(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# All of it but what is marked slow: at most eight minutes on two cores.
test: lint
	$(PYTEST)

# What is marked slow: whole trainings in several processes, kills, full disks, benchmarks. Before a release; an hour or two.
slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# The same tests, and the share of lines and branches that they run; programs that tests start are not counted.
coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov --cov-report=term:skip-covered

# The documentation site, in docs/_build/html; warnings are errors.
docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m sphinx -W --keep-going --fresh-env -b html docs docs/_build/html

# A stamp is written last, so a failed installation leaves none.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or older than 3.11; install Python 3.11 or later, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) -m venv failed; install its venv module (Debian and Ubuntu: python3-venv)" >&2; exit 2; }
	@touch $@

$(VENV)/.installed: requirements.txt $(VENV)/.made
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-docs: requirements-docs.txt $(VENV)/.installed
	$(PIP) -r requirements-docs.txt
	@touch $@
