# Two commands for a start: `make up` and `make test`. Each line here is short on purpose: what is behind it is a script
# or a Cargo command that can be run by itself.

CARGO ?= cargo
TFDEV = $(CARGO) run --release --quiet --

.DEFAULT_GOAL := help
.PHONY: help setup up down test kill-matrix recovery soak check bench docs fmt build clean-docker

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Get what is missing on this machine: Docker, PostgreSQL 15, a C compiler
	@scripts/setup

build: ## Build the program: target/release/tfdev
	$(CARGO) build --release

up: setup build ## A database with a schema and data, and a first query
	@$(TFDEV) image ensure || echo 'make: going on without Docker, if PostgreSQL 15 is on this machine'
	$(TFDEV) up
	$(TFDEV) psql -- -c 'SELECT status, count(*) FROM tasks GROUP BY status ORDER BY count DESC'

down: ## Stop the database and keep its data
	$(TFDEV) down

test: setup ## Run all tests; those with Docker are skipped if there is none, and named at the end
	$(CARGO) test --doc --quiet
	@CARGO="$(CARGO)" scripts/test

kill-matrix: ## Kill tfdev at 500 random moments of its work with snapshots, on each engine
	TFDEV_KILL_ROUNDS=$(or $(ROUNDS),500) $(CARGO) test --test suite -- --nocapture tfdev_is_killed_at_random_moments

recovery: ## Recover to 50 moments of a history, and let the agent work for 30 days of a clock that is moved on
	TFDEV_TEST_INSTANTS=$(or $(INSTANTS),50) $(CARGO) test --test suite -- --nocapture backup::recovery
	TFDEV_TEST_DAYS=$(or $(DAYS),30) $(CARGO) test --test suite -- --nocapture backup::month

soak: ## Take 10,000 fresh databases while processes are killed, on each engine and over HTTP, and look for what is left
	TFDEV_SOAK=$(or $(LEASES),10000) $(CARGO) test --test suite -- --nocapture killed_at_any_moment
	TFDEV_SOAK=$(or $(LEASES),10000) $(CARGO) test --lib -- --nocapture many_leases_in_a_row
	TFDEV_SOAK=$(or $(LEASES),10000) $(CARGO) test --test suite -- --nocapture many_databases_in_a_row

check: ## Formatting, lints, documentation, licences
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --quiet -- -D warnings
	$(CARGO) clippy --no-default-features --lib --quiet -- -D warnings
	@scripts/check-library-dependencies
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --quiet
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "installing cargo-deny, once"; $(CARGO) install cargo-deny --locked; }
	$(CARGO) fetch --locked --quiet
	$(CARGO) deny --offline check bans licenses sources

bench: ## Measure what is promised about time and memory; one part: make bench ONLY=up-new
	$(CARGO) bench --bench bench -- $(ONLY)

docs: ## Build the library's documentation: target/doc/tfdev/index.html
	$(CARGO) doc --no-deps

fmt: ## Format the code
	$(CARGO) fmt

clean-docker: ## Remove containers and volumes that killed tests and measurements left
	@scripts/clean-docker
