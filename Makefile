# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
# On a machine without a GPU, PyTorch's CPU wheels save gigabytes:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
CONSTRAINTS := constraints.txt
EXTRAS := test

.PHONY: demo study test test-fast test-oldest test-newest soak lint clean

demo: $(VENV)/.installed
	$(RUN) -m bench.scenes.demo --out build/demo

# The paper's tables, hours; with STUDY_ARGS=--quick, minutes.
study: $(VENV)/.installed
	$(RUN) -m bench.study $(STUDY_ARGS)

# Two processes, for two cores. The kernels run in Triton's interpreter, which has to be chosen before triton is imported.
BESIDE := tests/data tests/settings tests/models tests/bench tests/evaluation tests/memory tests/packing tests/reports \
    tests/test_readme.py
# What the first says, until the second has ended; a file for each way of testing, since they may be run at once.
FIRST := build/tests-$(notdir $(VENV)).txt
MARKS := not long

test: $(VENV)/.installed
	@mkdir -p build
	@(TRITON_INTERPRET=1 $(RUN) -m pytest -q -m "$(MARKS)" tests/kernels; kernels=$$?; $(RUN) -m pytest -q -m "$(MARKS)" $(BESIDE) && test $$kernels -eq 0) \
	    > $(FIRST) 2>&1 & \
	first=$$!; \
	$(RUN) -m pytest -q -m "$(MARKS)" tests --ignore=tests/kernels $(addprefix --ignore=,$(BESIDE)); second=$$?; \
	wait $$first; code=$$?; cat $(FIRST); test $$code -eq 0 && test $$second -eq 0

# Between two edits: what takes seconds by itself, or starts processes, is left out.
test-fast: $(VENV)/.installed
	@$(MAKE) --no-print-directory test MARKS="not slow and not long" FIRST=build/tests-fast.txt \
	    BESIDE="$(filter-out tests/models tests/test_readme.py,$(BESIDE))"

# The same with the oldest and the newest of everything it stands on, each in a venv of its own. Their PyTorch has CUDA,
# several gigabytes, which no test needs; PIP_ARGS can point at CPU wheels, without which a few tests are skipped.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRAS=test,quant

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt EXTRAS=test,quant,peers

# Random kills, signals and full disks over runs that are then resumed, and every fuzzer; minutes, or as long as SOAK_ARGS
# and FUZZ_ARGS say: make soak SOAK_ARGS="--trials 400 --minutes 90" FUZZ_ARGS="--minutes 60"
soak: $(VENV)/.installed
	@mkdir -p build
	$(RUN) -m tests.soak --out build/soak.json $(SOAK_ARGS)
	$(RUN) -m tests.soak.fuzz $(FUZZ_ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf build dist .venv .venv-oldest .venv-newest *.egg-info
