# The commands of README, CI and desk. Everything runs on real servers, started by stack/ and ended again.

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-quick peers profile ways verify-large faults mutants loadtester-proof try-systemd check lint unit integration stack-up stack-down clean

FEATURES := --workspace --features fault-points
# These tests need no servers. Every other one does, so a new one is run without being named here.
WITHOUT_SERVERS := architecture simulator corpus message_format configuration
TESTS := $(wildcard tests/*.rs loadtester/tests/*.rs) $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs))
ON_SERVERS := $(filter-out $(WITHOUT_SERVERS),$(notdir $(basename $(TESTS))))
# More than run at a time: tests/pipeline/servers.rs lets each in when there are servers for it.
TEST_THREADS ?= 8

help:
	@echo "make demo         see it work: Kafka to PostgreSQL, with bad records and a kill in the middle"
	@echo "make test         everything that must hold: lints, unit tests, tests on real servers"
	@echo "make bench        speed against the raw ceiling and a naive pipe, scale, latency; 15 minutes; writes bench-results/"
	@echo "make profile      where the CPU-seconds go, with a flame graph; needs perf; writes bench-results/"
	@echo "make bench-quick  the short form, two minutes: the decoder alone, and one round of the bench"
	@echo "make peers        measure it beside what one would use instead: speed, a poison record, SIGKILL; writes bench-results/"
	@echo "make faults       prove it: 500 kills and every other fault, 20 minutes; DURATION=2h SEED=7; writes bench-results/"
	@echo "make verify-large  time rowmill verify on 100 million rows, and let it find seven damaged ones; 9 GB of disk"
	@echo "make mutants      prove the tests: plants eighteen bugs, one after another, and shows which test notices"
	@echo "make ways         compare the ways to write rows, look tokens up and keep positions; writes bench-results/"
	@echo "make loadtester-proof  prove the load tester itself; writes bench-results/ (20 minutes)"
	@echo "make try-systemd  install and run the service under a systemd of its own, as the documents say (needs root)"
	@echo "make check        lints and unit tests, without servers"
	@echo "make lint         format, clippy, links; shellcheck, promtool and systemd-analyze, which 'stack/install --checks' brings"
	@echo "make unit         unit tests"
	@echo "make integration  tests on real servers"
	@echo "make stack-up     start Kafka, PostgreSQL and Redis under target/stack and leave them running"
	@echo "make stack-down   stop them"
	@echo "make clean        stop and remove all of it, and what was built"

demo:
	stack/install
	STACK_DIR=target/demo-stack stack/with stack/demo

test:
	stack/install --checks
	$(MAKE) lint unit integration

bench:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/all $(BENCH)

profile:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/profile

bench-quick:
	stack/install
	cargo bench --bench decode
	STACK_DIR=target/bench-stack stack/with benches/run --rounds 1 --name quick $(BENCH)

peers:
	stack/install
	STACK_DIR=target/peers-stack stack/with benches/peers/run $(PEERS)

# With STACK_PG_CLOCK the server's wall clock can be set.
faults: export STACK_PG_CLOCK = 1
faults:
	stack/install
	SIMULATE_SECONDS=60 cargo test $(FEATURES) --test simulator
	STACK_DIR=target/faults-stack stack/with faults/run $(FAULTS)

verify-large:
	stack/install
	cargo build --release --workspace --bin rowmill --bin verify_large
	STACK_DIR=target/bench-stack stack/with target/release/verify_large $(VERIFY)

mutants:
	stack/install
	STACK_DIR=target/mutants-stack stack/with faults/mutants

ways:
	stack/install
	cargo build --release --workspace --bin ways
	STACK_DIR=target/bench-stack stack/with target/release/ways $(WAYS)

loadtester-proof:
	stack/install
	cargo build --release --workspace --bin rowmill --bin loadtester --bin loadtester-fake-consumer
	STACK_DIR=target/proof-stack stack/with loadtester/proof/run $(PROOF)

try-systemd:
	stack/install
	cargo build --release --locked -p rowmill
	STACK_DIR=target/systemd-stack stack/with packaging/try-systemd $(DEB)

check: lint unit

lint:
	cargo fmt --all --check
	cargo clippy $(FEATURES) --all-targets -- -D warnings
	.ci/documents
	.ci/shellcheck
	.ci/monitoring
	.ci/systemd

unit:
	cargo test $(FEATURES) --lib --bins $(WITHOUT_SERVERS:%=--test %)

# Built before the servers start: they would only wait for the compiler.
integration:
	cargo test $(FEATURES) $(ON_SERVERS:%=--test %) --no-run
	STACK_DIR=target/test-stack stack/with \
		cargo test $(FEATURES) $(ON_SERVERS:%=--test %) -- --test-threads=$(TEST_THREADS) $(TEST)

stack-up:
	stack/up

stack-down:
	stack/down

clean:
	for dir in target/*stack; do STACK_DIR="$$dir" stack/down --wipe; done
	cargo clean
