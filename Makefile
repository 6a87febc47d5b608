# Each target does all its own set-up: a virtual environment in .venv, and compilers from apt where root runs it.
# PYTHON chooses the interpreter; FUZZ_SECONDS, BENCH_ARGS, PYTEST_ARGS, SUITES and VERSIONS say how much of it.

PYTHON ?= python3
FUZZ_SECONDS ?= 60
BENCH_ARGS ?=
PYTEST_ARGS ?=
SUITES ?=
SUITES_ARGS ?=
export PYTHON FUZZ_SECONDS BENCH_ARGS PYTEST_ARGS SUITES_ARGS

.PHONY: help demo test lint format bench asan tsan fuzz test-versions suites clean

help:
	@echo "make demo           the faults of examples/orders.py, found"
	@echo "make test           build, and all tests on $(PYTHON)"
	@echo "make lint           ruff, mypy, clang-format, and warnings of gcc and clang as errors"
	@echo "make format         format Python and C"
	@echo "make bench          what it costs, beside its peers, and how right it is"
	@echo "make asan           all tests under AddressSanitizer and UBSan"
	@echo "make tsan           tests of the watchdog under ThreadSanitizer"
	@echo "make fuzz           fuzz every decoder of foreign bytes, FUZZ_SECONDS each"
	@echo "make test-versions  the tests on every CPython that can be found, or those of VERSIONS"
	@echo "make suites         the tests of other projects, bare and under loopwatch run, compared (long)"
	@echo "make clean          remove everything that was built"

demo:
	@tools/demo.sh

# Others may take the CPU away in the middle of a measurement: what fails is tried twice more, and named (RERUN).
test test-versions: PYTEST_ARGS := $(or $(PYTEST_ARGS),--reruns 2 --reruns-delay 1 -raR)

test:
	@tools/test.sh

lint:
	@tools/lint.sh

format:
	@tools/lint.sh --fix

bench:
	@tools/bench.sh

asan:
	@tools/sanitize.sh asan

tsan:
	@tools/sanitize.sh tsan

fuzz:
	@tools/bootstrap.sh clang fuzzer
	@tests/c/run.sh fuzz $(FUZZ_SECONDS)

test-versions:
	@tools/versions.sh

suites:
	@tools/suites.sh $(SUITES)

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .mesonpy-*
