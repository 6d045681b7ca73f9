# Bare `make` lists the verbs.
SHELL := bash
TIER ?=
RUN ?=
SEED ?= 1
SEEDS ?=
OPS ?= 2000
N ?= 3
NAME ?=
ARGS ?=
SECONDS ?= 60
FUZZ := storage::fuzz::snap_files storage::wal::fuzz::logs storage::bbolt::fuzz::bbolt_files
COMPAT := scripts/etcd-e2e-compat.sh

.DEFAULT_GOAL := help
.PHONY: help build release check test unit it sim e2e diff kill mixed chaos door judge bench fuzz cluster run fmt lint fix verify clean ci

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build for debugging
	cargo build --locked

release: ## Build target/release/rusd
	cargo build --release --locked

check: ## Type-check everything, tests included
	cargo check --locked --workspace --all-targets

test: ## All Rust tests, then tiers 1 and 2 of etcd's suite against the ledger
	cargo test --locked
	cd e2e/judge && go test ./...
	$(COMPAT) --tier 1 --tier 2 $(ARGS)

unit: ## Unit tests only
	cargo test --locked --lib

it: ## Integration tests only
	cargo test --locked --test it

sim: ## The simulation: SEED= alone plays one seed, SEEDS= so many from SEED on
	$(if $(SEEDS),SEEDS=$(SEEDS)) SEED=$(SEED) cargo test --locked --release --test sim -- no_seed --nocapture

e2e: ## etcd's suite: TIER=1..6 (several: "1 2"), RUN=regex, ARGS=more options
	$(COMPAT) $(foreach t,$(TIER),--tier $(t)) $(if $(RUN),--run '$(RUN)') $(ARGS)

diff: ## One random history sent to rusd and etcd: SEED= OPS= ARGS=
	scripts/judge.sh diff --seed $(SEED) --ops $(OPS) $(ARGS)

kill: ## Kill rounds under concurrent writers: ARGS=
	scripts/judge.sh kill $(ARGS)

mixed: ## One cluster of rusd and real etcd: ARGS=
	scripts/judge.sh mixed $(ARGS)

chaos: ## Kills, pauses, broken links, replaced members; linearizability checked: ARGS="--minutes 10 --members 5"
	scripts/judge.sh chaos $(ARGS)

door: ## etcd and rusd in turns on one directory, by SIGKILL: ARGS=
	scripts/judge.sh door $(ARGS)

judge: ## Another judge: NAME=watch, authtable, badinput, damage, offline or compaction, ARGS=
	scripts/judge.sh $(NAME) $(ARGS)

bench: ## etcd's benchmark against rusd and etcd in turn: ARGS="--quick"
	scripts/bench.sh $(ARGS)

fuzz: ## Bytes that nobody wrote, to the readers of WAL, .snap and bbolt files: SECONDS=60 each
	for test in $(FUZZ); do \
		RUSD_FUZZ_SECONDS=$(SECONDS) cargo test --locked --lib -- --exact --nocapture $$test || exit 1; \
	done

cluster: ## A local cluster of N=3 members, until Ctrl-C
	cargo build --release --locked
	scripts/cluster.sh $(N) $(ARGS)

run: ## One member on 2379/2380, data in default.etcd: ARGS=
	cargo run --release --locked -- $(ARGS)

fmt: ## Format
	cargo fmt --all
	gofmt -w e2e

lint: ## Formatting and clippy, warnings are errors; shellcheck and go vet where there
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	if command -v go >/dev/null; then (cd e2e && go vet ./cmd/...) && cd e2e/judge && go vet ./...; fi
	if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh .ci/run; fi

fix: ## Apply clippy's suggestions and format
	cargo clippy --locked --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

verify: lint test ## What to run before a push: lint and test

clean: ## Remove what was built
	cargo clean
	rm -rf e2e/bin e2e/out

ci: ## What CI runs
	.ci/run
