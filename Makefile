.PHONY: test lint proto image
VENV := .venv
STAMP := $(VENV)/.installed-$(shell sha256sum pyproject.toml | cut -c1-16)

$(STAMP):
	/usr/bin/python3 -m venv $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -e '.[dev]'
	touch $@

proto: $(STAMP)
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(VENV)/bin/python tools/generate_protos.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy services/kit/service_kit services/node-agent/node_agent guest-agent/guest_agent deploy/image/sandpool_image tools
	$(VENV)/bin/buf lint protos
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(VENV)/bin/python tools/generate_protos.py --check

test: lint
	$(VENV)/bin/pytest tests

image: $(STAMP)
	$(VENV)/bin/python -m sandpool_image
