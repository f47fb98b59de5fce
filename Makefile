# Every target is a few lines that call the `bapo` command or a script. `make` lists them.
PYTHON ?= python3
DEVICE ?= cpu
VENV   ?= .venv
ARGS   ?=
bin    := $(VENV)/bin
export PATH := $(CURDIR)/$(bin):$(PATH)

.PHONY: help setup demo real test check format bench-startup bench-training bench-forgetting bench-registry bench-cpu-lora bench-overhead bench-cold-load bench-many-adapters bench-neighbour soak model docker clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

# The stamp is made anew whenever a lock file changes.
$(VENV)/.installed: requirements/$(DEVICE).txt requirements/dev.txt requirements/install.sh pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "bapo-server needs Python 3.11 to 3.13: make PYTHON=python3.11")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	requirements/install.sh $(DEVICE) dev
	touch $@

setup: $(VENV)/.installed ## the environment only, in .venv, from the locked set (DEVICE=cpu|gpu)

demo: setup ## train three adapters, serve them, ask the same question as each user (ARGS=--exit ends by itself)
	HF_HUB_OFFLINE=1 python examples/demo.py $(ARGS)

real: setup ## the same on real small talk: five personalities, five users (DATA=the data folder)
	HF_HUB_OFFLINE=1 python examples/real.py $(DATA) $(ARGS)

# Two processes of one thread each: threads of several processes on the same cores wait by spinning.
test: setup ## every test, the end-to-end ones on a real vLLM engine
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile $(ARGS)

check: setup ## format, lint, types: what CI runs before the tests
	ruff format --check .
	ruff check .
	mypy

format: setup ## put everything in the one format
	ruff format .
	ruff check --fix .

bench-startup: setup ## seconds to ready against vLLM's own server, both in one run
	HF_HUB_OFFLINE=1 python -m benchmarks.startup $(ARGS)

bench-training: setup ## training against TRL: pairs a second, memory, many users (ARGS="--parts step")
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 python -m benchmarks.training $(ARGS)

bench-forgetting: setup ## what learning a preference costs in knowledge: a grid, goes on where it was (DATA=the data folder)
	HF_HUB_OFFLINE=1 python -m benchmarks.forgetting runs/forgetting --data $(DATA) $(ARGS)

bench-registry: setup ## resolving, memory and publishing with 10,000 users and 10,000 adapters
	HF_HUB_OFFLINE=1 python -m benchmarks.registry $(ARGS)

bench-cpu-lora: setup ## what LoRA costs a CPU, against vLLM's own products
	HF_HUB_OFFLINE=1 python -m benchmarks.cpu_lora $(ARGS)

bench-overhead: setup ## what this server costs above vLLM's own: requests a second, first tokens, CPU
	HF_HUB_OFFLINE=1 python -m benchmarks.overhead $(ARGS)

bench-cold-load: setup ## what loading an adapter does to others' streams, and how soon it answers
	HF_HUB_OFFLINE=1 python -m benchmarks.cold_load $(ARGS)

bench-many-adapters: setup ## up to 1,000 adapters on few slots, against vLLM's filesystem resolver
	HF_HUB_OFFLINE=1 python -m benchmarks.many_adapters $(ARGS)

bench-neighbour: setup ## one base for all against transformers and PEFT, one process or one a user
	HF_HUB_OFFLINE=1 python -m benchmarks.neighbour $(ARGS)

soak: setup ## minutes of users, uploads and activations against a running server (ARGS=minutes)
	HF_HUB_OFFLINE=1 python -m benchmarks.soak $(ARGS)

model: setup ## build the pocket model anew (DATA=the data folder; up to 40 minutes)
	python models/pocket/build.py $(if $(DATA),--data $(DATA)) $(ARGS)

docker: ## the image (DEVICE=cpu|gpu)
	docker build --build-arg DEVICE=$(DEVICE) -t bapo-server:$(DEVICE) .

clean: ## remove what make and the tools made
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
