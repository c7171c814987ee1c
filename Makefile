# Targets with a ## comment are listed by `make`.

.DEFAULT_GOAL := help
GO ?= go
TAGS := nomsgpack
# Its output ends with what failed.
GOTESTSUM = $(GO) tool -modfile=tools.mod gotestsum

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

.PHONY: prove
prove: ## every interleaving of a small fleet's rollouts, and 1,000 analyses of equal candidates, in full
	$(GO) test -tags $(TAGS) -timeout 15m -count=1 -v ./internal/simulate ./internal/analysis

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 20s)
	@GO="$(GO)" ./scripts/fuzz "$${FUZZTIME:-20s}"

.PHONY: integration
integration: ## fleets under faults, in containers: the scenarios' short form, and what needs processes
	@mkdir -p dist
	$(GO) test -tags "$(TAGS) integration" -timeout 5m -count=1 ./integration/harness ./integration/history
	$(GOTESTSUM) --format standard-verbose -- -tags "$(TAGS) integration" -timeout 45m -count=1 ./integration -short-form -report $(CURDIR)/dist/integration.json

.PHONY: scenarios
scenarios: ## every scenario once, in containers, about twenty minutes
	@mkdir -p dist
	$(GOTESTSUM) --format standard-verbose -- -tags "$(TAGS) integration" -timeout 2h -count=1 -run '^TestScenarios$$' ./integration -report $(CURDIR)/dist/scenarios.json

.PHONY: soak
soak: ## a million requests and 300 faults in random order, over an hour; SEED=n repeats the choices
	@mkdir -p dist
	$(GO) test -tags "$(TAGS) integration" -timeout 8h -count=1 -v -run '^TestScenarios$$' ./integration -faults 300 -requests 1000000 -rate 250 -seed $(or $(SEED),0) -report $(CURDIR)/dist/soak.json
	$(GO) test -tags "$(TAGS) integration" -timeout 30m -count=1 -v -run '^TestI9_' ./integration -changes 200

.PHONY: scale
scale: ## what one etcd carries: fleets of 50 to 2,000 simulated instances; writes docs/scale
	$(GO) run -tags $(TAGS) ./internal/scale -dir docs

.PHONY: image
image: ## build the Docker images routerd and routerd-etcd, from nothing but our binaries
	@GO="$(GO)" ./deploy/image

.PHONY: up
up: ## start docker-compose.yml's fleet and wait until it is well; it builds the images if there are none
	@./deploy/up

.PHONY: down
down: ## remove that fleet: containers, networks, volumes
	@./deploy/down

.PHONY: lint
lint: ## gofumpt, vet, staticcheck, dead code
	@GO="$(GO)" ./scripts/lint

.PHONY: docs
docs: build ## generate docs/ and the schema anew
	$(GO) run -tags $(TAGS) ./internal/gendocs

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
