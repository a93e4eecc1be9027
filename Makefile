# The one front door. `make help` lists what there is.
VENV   ?= .venv
PYTHON ?= python3
# Processes that run tests.
WORKERS ?= auto
# The newest torch this project is tested with.
TORCH  ?= torch==2.13.0

BIN   := $(abspath $(VENV))/bin
STAMP := $(VENV)/.ready

export HF_HUB_OFFLINE := 1
export ORT_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

# The C++ runtime: where it is built, and the headers of ONNX Runtime that it is built with.
NATIVE      := build/native
# Where the Python runtime finds the kernels.
KERNELS     := runtime/python/adexport_runtime/native/libadexport_kernels.so
# The oldest ONNX Runtime that pyproject.toml takes, for a second run of the C++ tests.
OLDEST_ORT  := onnxruntime==1.23.2
OLDER       := build/onnxruntime-oldest
ORT_HEADERS := $(abspath $(or $(ONNXRUNTIME_INCLUDE_DIR),build/onnxruntime-headers))
# Where the wheel of ONNX Runtime has its library; others are taken with ADEXPORT_ORT_LIBRARY=….
ORT_LIBRARY  = $(or $(ADEXPORT_ORT_LIBRARY),$(shell find "$(VENV)/lib" -name 'libonnxruntime.so.*' | head -n 1))
NATIVE_TEST  = ADEXPORT_ORT_LIBRARY="$(abspath $(ORT_LIBRARY))" ADEXPORT_TEST_BUNDLES="$(abspath build/bundles)"
CONFIGURE    = cmake -S runtime/cpp -G Ninja -DONNXRUNTIME_INCLUDE_DIR="$(ORT_HEADERS)" -DADEXPORT_BUILD_TESTS=ON \
	-DADEXPORT_WARNINGS_AS_ERRORS=ON

.PHONY: help setup demo test test-gpu lint types unit bench format clean
.PHONY: native native-build native-bundles native-tools native-older native-sanitize native-fuzz native-cuda native-format native-lint

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment with everything for development

# torch first and alone: what comes later is then satisfied with it
$(STAMP): pyproject.toml requirements/assets.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[test,demo]'
	$(BIN)/pip install --quiet --no-deps --requirement requirements/assets.txt
	touch $@

demo: $(STAMP)  ## two tenants on one exported encoder, from nothing, in a few minutes
	$(BIN)/python samples/two_tenants/run.py

test: lint types native-tools native native-older native-sanitize native-fuzz native-format unit  ## everything CI runs

lint: $(STAMP)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict, on both packages
	$(BIN)/mypy

unit: $(STAMP)  ## pytest, a process for each core (ARGS="-m 'not slow'" for the quick ones)
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder $(ARGS)

test-gpu: $(STAMP)  ## the suite for GPUs; fails where none answers (ALLOW_NO_GPU=1: the controls alone)
	REQUIRE_GPU=$(if $(ALLOW_NO_GPU),,1) PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/gpu $(ARGS)

native: native-build native-bundles  ## the C++ runtime: build it, run its tests, use it from another project
	$(NATIVE_TEST) ctest --test-dir $(NATIVE) --output-on-failure $(ARGS)
	$(NATIVE_TEST) runtime/cpp/tests/consumer/build.sh $(NATIVE) build/bundles/encoder.bundle a
	$(NATIVE_TEST) runtime/cpp/tests/consumer/readme.sh $(NATIVE)/install build/bundles/encoder.bundle

native-build: $(ORT_HEADERS)/onnxruntime_c_api.h  ## the C++ runtime in build/native, installed in its install/
	$(CONFIGURE) -B $(NATIVE) -DCMAKE_BUILD_TYPE=Release
	cmake --build $(NATIVE)
	cmake --install $(NATIVE) --prefix $(NATIVE)/install >/dev/null
	install -D $(NATIVE)/install/lib*/libadexport_kernels.so $(KERNELS)

native-tools:  ## what the C++ runtime is built with, from Debian's packages (nothing where all of it is there)
	if command -v dpkg-query >/dev/null; then runtime/cpp/install_debian.sh; fi

native-older: native-build native-bundles  ## the same tests on the oldest ONNX Runtime that is taken
	test -d $(OLDER) || $(BIN)/pip install --quiet --no-deps --target $(OLDER) $(OLDEST_ORT)
	ADEXPORT_ORT_LIBRARY="$$(find "$(abspath $(OLDER))" -name 'libonnxruntime.so.*' | head -n 1)" \
		ADEXPORT_OTHER_ORT_LIBRARY="$(abspath $(ORT_LIBRARY))" ADEXPORT_KERNELS="$(abspath $(KERNELS))" \
		ADEXPORT_TEST_BUNDLES="$(abspath build/bundles)" ctest --test-dir $(NATIVE) --output-on-failure $(ARGS)

$(ORT_HEADERS)/onnxruntime_c_api.h:
	runtime/cpp/fetch_headers.sh "$(ORT_HEADERS)"

# what the tests of the C++ runtime run: made once, and again when what makes them changes
native-bundles: build/bundles/ready

build/bundles/ready: runtime/cpp/tests/make_bundles.py | $(STAMP)
	rm -rf build/bundles
	OMP_NUM_THREADS=1 $(BIN)/python $< build/bundles

native-sanitize: $(ORT_HEADERS)/onnxruntime_c_api.h native-bundles  ## its tests under ASan, UBSan and TSan
	$(CONFIGURE) -B $(NATIVE)-address -DCMAKE_BUILD_TYPE=RelWithDebInfo -DADEXPORT_SANITIZE=address,undefined
	cmake --build $(NATIVE)-address
	$(NATIVE_TEST) UBSAN_OPTIONS=print_stacktrace=1 ctest --test-dir $(NATIVE)-address --output-on-failure $(ARGS)
	$(CONFIGURE) -B $(NATIVE)-thread -DCMAKE_BUILD_TYPE=RelWithDebInfo -DADEXPORT_SANITIZE=thread
	cmake --build $(NATIVE)-thread
	$(NATIVE_TEST) ctest --test-dir $(NATIVE)-thread --output-on-failure $(ARGS)

native-fuzz: $(ORT_HEADERS)/onnxruntime_c_api.h  ## what reads bytes of others, for a minute (SECONDS_EACH=20)
	CXX=clang++ $(CONFIGURE) -B $(NATIVE)-fuzz -DADEXPORT_BUILD_TESTS=OFF -DADEXPORT_BUILD_KERNELS=OFF \
		-DADEXPORT_WARNINGS_AS_ERRORS=OFF -DADEXPORT_BUILD_FUZZERS=ON -DADEXPORT_SANITIZE=address,undefined \
		-DADEXPORT_FUZZ_SECONDS=$(or $(SECONDS_EACH),20)
	cmake --build $(NATIVE)-fuzz
	ctest --test-dir $(NATIVE)-fuzz/fuzz --output-on-failure

native-cuda: $(ORT_HEADERS)/onnxruntime_c_api.h  ## the kernels for CUDA (needs nvcc), and their tests where a GPU is
	$(CONFIGURE) -B $(NATIVE)-cuda -DADEXPORT_CUDA=ON
	cmake --build $(NATIVE)-cuda --target adexport_kernels adexport_kernel_cuda_tests
	$(NATIVE)-cuda/kernels/tests/adexport_kernel_cuda_tests

native-format:  ## clang-format on it
	git ls-files 'runtime/cpp/*.cpp' 'runtime/cpp/*.hpp' 'runtime/cpp/*.h' 'runtime/cpp/*.c' \
		| xargs clang-format --dry-run -Werror

# without tests, whose macros take clang-tidy minutes, and what only nvcc's machines configure
native-lint: native-build native-format  ## clang-format on it, and clang-tidy on what is shipped
	git ls-files 'runtime/cpp/src/*.cpp' 'runtime/cpp/kernels/*.cpp' \
		':!runtime/cpp/kernels/tests' ':!runtime/cpp/kernels/cuda' \
		| xargs -n 1 -P "$$(nproc)" clang-tidy --quiet -p $(NATIVE)

bench: $(STAMP)  ## the numbers of BENCHMARKS.md
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/encoder.py
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/decoder.py
	PATH="$(BIN):$$PATH" $(BIN)/python tests/benchmarks/engines.py

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built here
	rm -rf $(VENV) .cache build dist *.bundle $(KERNELS)
