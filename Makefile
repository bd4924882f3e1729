# SPDX-License-Identifier: Apache-2.0
# Short names for daily work; every target is one or two plain commands.
PYTHON ?= python
BUILD ?= build/native

.PHONY: native ctest sanitize test kernel-gate lint wheel clean

native:  ## build the native library into licag3d/_native
	cmake -S . -B $(BUILD) -G Ninja -DLICAG3D_TESTS=ON
	cmake --build $(BUILD)
	cmake --install $(BUILD) --prefix licag3d/_native

ctest: native  ## C++ unit tests
	ctest --test-dir $(BUILD) --output-on-failure

# Python itself is not sanitized: the runtimes are loaded before it, and what the interpreter never frees is no leak of
# ours. torch's own threads and files stay as they are; only liblicag3d is watched.
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))

# Fewer of the tests for a quick look: make sanitize SANITIZE_TESTS=tests/ops/test_bad_input.py
SANITIZE_TESTS ?= tests/ops

sanitize:  ## C++ unit tests and the Python tests of the operators under the address and undefined-behaviour sanitizers
	cmake -S . -B build/sanitize -G Ninja -DLICAG3D_TESTS=ON -DLICAG3D_SANITIZE=ON -DLICAG3D_CUDA=0
	cmake --build build/sanitize
	ctest --test-dir build/sanitize --output-on-failure
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
		LICAG3D_LIBRARY_FOLDER=build/sanitize $(PYTHON) -m pytest -q -p no:cacheprovider $(SANITIZE_TESTS) \
		--deselect tests/ops/test_project_tubes.py::test_a_full_image_takes_well_under_a_second

test:  ## Python tests
	$(PYTHON) -m pytest -q tests

kernel-gate: native  ## operators against their twins: none may have become slower than recorded
	$(PYTHON) tools/kernel_gate.py

lint:
	$(PYTHON) -m ruff check .

wheel:
	$(PYTHON) -m pip wheel --no-deps -w dist .

clean:
	rm -rf build dist licag3d/_native *.egg-info
