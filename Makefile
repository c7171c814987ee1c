# Targets with a ## comment are listed by `make`.

.DEFAULT_GOAL := help
GO ?= go
TAGS := nomsgpack

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## start a fleet on this machine: etcd, three instances, examples (ARGS="--http :8000" to change)
	@$(MAKE) --no-print-directory build
	@./bin/routerd dev $(ARGS)

.PHONY: build
build: ## build bin/routerd and bin/routectl
	@mkdir -p bin
	$(GO) build -tags $(TAGS) -o bin/ ./cmd/routerd ./cmd/routectl

.PHONY: test
test: ## the tests, with the race detector
	$(GO) test -tags $(TAGS) -race -timeout 15m ./...

.PHONY: quick
quick: ## the tests without the race detector, under two minutes
	$(GO) test -tags $(TAGS) -short ./...

.PHONY: bench
bench: ## the benchmarks of speed, as ratios in one run
	$(GO) run -tags $(TAGS) ./internal/bench

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@GO="$(GO)" ./scripts/fuzz "$${FUZZTIME:-20s}"

.PHONY: integration
integration: ## the tests that need processes and Docker: fleets, etcd clusters, faults
	$(GO) test -tags "$(TAGS) integration" -timeout 20m -count=1 ./integration/...

.PHONY: soak
soak: ## 200 publishes and rollbacks under load, 30 processes killed at random moments
	$(GO) test -tags "$(TAGS) integration" -timeout 30m -count=1 -v -run 'TestI9_|TestI5_|TestConverges' ./integration -changes 200 -strikes 30

.PHONY: lint
lint: ## gofumpt, vet, staticcheck, dead code
	@GO="$(GO)" ./scripts/lint

.PHONY: docs
docs: build ## generate docs/ and the schema anew
	$(GO) run -tags $(TAGS) ./internal/gendocs

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
