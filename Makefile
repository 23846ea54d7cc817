# Each target makes the virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready
EXTRAS := $(VENV)/.extras

# What is built of llama.cpp: the library that its Python package loads, without tools, server, pictures, and what these
# have in common. The package's own build forces the latter on, after which only an included file turns it off.
LLAMA_CPP := $(shell sed -n 's/^llama_cpp_python==//p' constraints.txt)
LLAMA_CPP_SETTINGS := $(abspath $(VENV))/llama.cmake
LLAMA_CPP_PARTS := -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(LLAMA_CPP_SETTINGS) \
	$(foreach part,TESTS EXAMPLES TOOLS SERVER APP,-DLLAMA_BUILD_$(part)=OFF)

.PHONY: report full-report test test-extras llama-cpp lint clean

report: $(READY)  ## measure SmolLM2-135M here and write report/report.html
	$(VENV)/bin/sentinel report --quick --force

full-report: $(READY)  ## the same with more rounds, levels and sizes: half an hour on 2 cores, or more
	$(VENV)/bin/sentinel report --output full-report --force

test: $(READY)  ## run the tests
	$(VENV)/bin/python -m pytest --durations=15

test-extras: $(EXTRAS) llama-cpp  ## the tests of the extras: lm-eval, Ray, other runtimes, ONNX, llama.cpp
	$(VENV)/bin/python -c "import ctranslate2, llama_cpp, lm_eval, onnxruntime, onnxruntime_genai, onnxscript, openvino, ray"
	$(VENV)/bin/python -m pytest -rs tests/test_lm_eval.py tests/test_peers.py tests/test_export_onnx.py \
		tests/test_export_llama_cpp.py tests/test_sweep.py tests/test_family_table.py \
		tests/test_hugging_face_tools.py::test_an_onnx_graph_holds_for_other_masks_and_lengths

llama-cpp: $(READY)  ## llama.cpp at the version of constraints.txt, where it is not there yet: four minutes of one core
	$(VENV)/bin/python -m pip show llama-cpp-python 2>/dev/null | grep -qx 'Version: $(LLAMA_CPP)' || { \
		echo 'set(LLAMA_BUILD_COMMON OFF)' >$(LLAMA_CPP_SETTINGS) && \
		CMAKE_ARGS="$(LLAMA_CPP_PARTS)" $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt \
		--config-settings build.targets=llama llama-cpp-python==$(LLAMA_CPP); }

lint: $(READY)  ## style, types, import order
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(EXTRAS): $(READY)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval,ray,runtimes]'
	touch $@

clean:
	rm -rf $(VENV) report full-report .pytest_cache .ruff_cache
