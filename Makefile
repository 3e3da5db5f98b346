# `make` lists what there is. Needs Python 3.11 to 3.13 and nothing else; Docker only for what says so.
EXAMPLE ?= iris
PORT    ?= 8080
IMAGE   ?= berth
# Of `make energy`.
CUSTOMERS  ?= 1000
FORECASTER ?= default
ENGINE     ?= own
# Flags of `docker build`. The host's network, because a build needs the package index that this machine reaches.
BUILD_FLAGS ?= --network=host
PYTHON  ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(python))))

# Passed on to the build where they are set, by the environment or on the command line.
BUILD_ARGS = $(foreach name,BASE SPACY_MODEL PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST,$(if $($(name)),--build-arg $(name)))
# SageMaker takes one plain manifest: no attestations (BuildKit adds them, the classic builder does not know the flag).
PLAIN_MANIFEST = $(shell docker buildx version >/dev/null 2>&1 && echo --provenance=false)

.DEFAULT_GOAL := help
.PHONY: help serve serve-many energy test lint image image-mms serve-docker bench bench-many bench-fleet faults faults-many lock clean .venv .venv-bench
MAKEFLAGS += --no-print-directory

help: ## this list
	@sed -n 's/^\([a-z.][a-z.-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

serve: .venv ## train an example if it has no model, and serve it on this machine [EXAMPLE=iris] [PORT=8080]
	@.venv/bin/python -m local_test.example $(EXAMPLE) $(PORT)

serve-many: .venv ## the same model a hundred times behind one endpoint [EXAMPLE=iris] [PORT=8080]
	@.venv/bin/python -m local_test.many $(EXAMPLE) $(PORT)

energy: .venv .venv/energy $(if $(filter mms,$(ENGINE)),.venv/mms) ## a forecast for each of many customers: data, training, one endpoint [CUSTOMERS=1000] [FORECASTER=default|prophet] [ENGINE=own|mms]
	@.venv/bin/python -m local_test.energy --customers $(CUSTOMERS) --forecaster $(FORECASTER) --engine $(ENGINE)

test: lint ## everything: lint, types, tests on this machine and, if an engine answers, in Docker [TESTS=tests/test_x.py]
	@.venv/bin/python -m pytest -ra $(TESTS)

lint: .venv/mms .venv/energy ## style and types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy container local_test requirements tests benchmarks

image: ## build the image (Docker) [IMAGE=berth] [SPACY_MODEL=en_core_web_sm] [BUILD_FLAGS=...]
	docker build $(BUILD_FLAGS) $(PLAIN_MANIFEST) $(BUILD_ARGS) --target server -t $(IMAGE) .

image-mms: ## build the image with Java and Multi Model Server (Docker) [IMAGE=berth]
	docker build $(BUILD_FLAGS) $(PLAIN_MANIFEST) $(BUILD_ARGS) --target mms -t $(IMAGE)-mms .

serve-docker: image ## the same as `serve`, in the image (Docker): trains in it, then serves [PORT=8080]
	@local_test/train_local.sh $(IMAGE)
	@PORT=$(PORT) local_test/serve_local.sh $(IMAGE)

bench: .venv .venv-bench ## our figures beside the peers', in one run [BENCH_FLAGS=--write]
	@.venv-bench/bin/python -m benchmarks.one_model $(BENCH_FLAGS)
	@.venv-bench/bin/python -m benchmarks.memory $(BENCH_FLAGS)

bench-many: .venv/mms .venv-bench ## thousands of models, beside a stock Multi Model Server (about 6 minutes) [BENCH_FLAGS=--write]
	@.venv-bench/bin/python -m benchmarks.many $(BENCH_FLAGS)

bench-fleet: .venv .venv-bench ## a thousand models in one job, and the split of ten million rows (about 12 minutes) [BENCH_FLAGS=--write]
	@.venv-bench/bin/python -m benchmarks.fleet $(BENCH_FLAGS)
	@.venv-bench/bin/python -m benchmarks.split $(BENCH_FLAGS)

faults: .venv ## killed workers, SIGTERM under load, 50,000 mutated requests (about 3 minutes)
	@.venv/bin/python -m benchmarks.faults

faults-many: .venv image ## 200 models that do not all fit into 1 GB, then shards killed as well (Docker, about 4 minutes) [IMAGE=berth]
	@.venv/bin/python -m benchmarks.many_faults --image $(IMAGE)
	@.venv/bin/python -m benchmarks.loads_beside

lock: .venv ## write the lock files anew from pyproject.toml [LOCK_FLAGS=--upgrade]
	@requirements/lock.sh $(LOCK_FLAGS)

clean: ## remove what the above has made here, images excepted
	rm -rf .venv .venv-bench build .pytest_cache .mypy_cache .ruff_cache .hypothesis local_test/test_dir/model local_test/test_dir/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: .venv/installed ## only the set-up
.venv-bench: .venv-bench/installed

.venv/installed: requirements/dev.txt requirements/image.txt requirements/bootstrap.txt requirements/install.py
	@$(need-python)
	@$(PYTHON) requirements/install.py .venv requirements/dev.txt requirements/image.txt
	@touch $@

.venv/mms: .venv/installed requirements/mms.txt
	@.venv/bin/python -m pip install --quiet --no-build-isolation --require-hashes -r requirements/mms.txt # one of it is source only
	@touch $@

.venv/energy: .venv/installed requirements/energy.txt
	@.venv/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/energy.txt
	@touch $@

.venv-bench/installed: requirements/bench.txt requirements/bootstrap.txt requirements/install.py
	@$(need-python)
	@$(PYTHON) requirements/install.py .venv-bench requirements/bench.txt
	@.venv-bench/bin/python -m compileall -q -j 0 .venv-bench/lib >/dev/null || true # or each start of a peer would compile it; a few files are for other Pythons
	@touch $@

need-python = test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 on PATH (looked for python3, python3.13, python3.12, \
	python3.11); name one with make PYTHON=..." >&2; exit 1; }
