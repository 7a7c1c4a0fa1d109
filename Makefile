.PHONY: demo test bench lint proto image setup cloud-hypervisor kvmhost kvmhost-test
VENV := .venv
PYTHON := $(VENV)/bin/python
HASH := $(shell sha256sum pyproject.toml | cut -c1-16)
RUN_STAMP := $(VENV)/.run-$(HASH)
DEV_STAMP := $(VENV)/.dev-$(HASH)
# What runs is what is installed here, not what somebody's shell adds.
unexport PYTHONPATH
# What mypy reads; tests are checked by running them.
TYPED := services/kit/service_kit services/scheduler/scheduler services/pool-manager/pool_manager \
	services/node-agent/node_agent guest-agent/guest_agent deploy/image/sandpool_image deploy/kvmhost/sandpool_kvmhost \
	sdk/python/sandpool demo bench tools

# Runs everything on this machine and shows what it does.
demo: setup $(RUN_STAMP)
	@$(PYTHON) demo/demo.py

# Everything that must hold, on real VMs.
test: setup lint image
	@sh deploy/setup/packages.sh openssh-client git
	$(VENV)/bin/pytest tests

# Numbers against baselines of the same run, into build/bench.json.
bench: setup $(DEV_STAMP)
	$(PYTHON) -m bench

setup:
	@sh deploy/setup/packages.sh

$(RUN_STAMP):
	@test -d $(VENV) || /usr/bin/python3 -m venv $(VENV)
	@echo "installing sandpool into $(VENV)"
	@$(VENV)/bin/pip install -q -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@$(VENV)/bin/pip install -q -e '.[dev]'
	@touch $@

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy $(TYPED)
	$(VENV)/bin/buf lint protos
	$(VENV)/bin/buf breaking protos --against protos/baseline.binpb
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(PYTHON) tools/generate_protos.py --check

proto: $(DEV_STAMP)
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(PYTHON) tools/generate_protos.py

image: setup $(RUN_STAMP)
	$(PYTHON) -m sandpool_image

# The pinned release of Cloud Hypervisor into ~/.cache/sandpool/bin.
cloud-hypervisor: $(RUN_STAMP)
	@$(PYTHON) -m sandpool.cli.download

# A host with a working KVM, emulated: see deploy/kvmhost/README.md.
kvmhost: setup $(DEV_STAMP)
	@sh deploy/setup/packages.sh openssh-client git
	@$(PYTHON) -m sandpool_kvmhost up

# That such a host boots and what it promises; then in it, everything that needs Cloud Hypervisor.
kvmhost-test: kvmhost
	$(VENV)/bin/pytest -m kvmhost tests/system/test_kvmhost.py
	$(PYTHON) -m sandpool_kvmhost test
