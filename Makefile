# The commands of README, CI and desk. Everything runs on real servers, started by stack/ and ended again.

.DEFAULT_GOAL := help
.PHONY: door example-timeseries example-timeseries-bench example-timeseries-large serve-bench serve-contract help demo test bench bench-quick bench-keyed bench-scale peers profile ways verify-large faults mutants loadtester-proof try-systemd check lint unit integration fuzz stack-up stack-down clean

FEATURES := --workspace --locked --features fault-points
# These tests need no servers. Every other one does, so a new one is run without being named here.
WITHOUT_SERVERS := architecture simulator corpus message_format configuration
TESTS := $(wildcard tests/*.rs loadtester/tests/*.rs) $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs))
ON_SERVERS := $(filter-out $(WITHOUT_SERVERS),$(notdir $(basename $(TESTS))))
# More than run at a time: tests/pipeline/servers.rs lets each in when there are servers for it.
TEST_THREADS ?= 12

help:
	@echo "make demo         see it work: Kafka to PostgreSQL, with bad records and a kill in the middle"
	@echo "make example-timeseries  HTTP in, downsampled series out, three kills; KEEP=1 leaves it up to look at, until Ctrl-C"
	@echo "make example-timeseries-bench  its messages a second per busy core, with 1, 10 and 100 in a POST; ten minutes; writes bench-results/"
	@echo "make example-timeseries-large  how long its answers take with 100 million rows, cold and warm; 25 GB of disk; writes bench-results/"
	@echo "make test         everything that must hold: lints, unit tests, tests on real servers"
	@echo "make bench        speed against the raw ceiling and a naive pipe, scale, latency; 15 minutes; writes bench-results/"
	@echo "make profile      where the CPU-seconds go, with a flame graph; needs perf; writes bench-results/"
	@echo "make bench-quick  the short form, two minutes: the decoder alone, and one round of the bench"
	@echo "make bench-keyed  tables with keys beside others: BENCH='--users 10000 --subjects rowmill,add'; writes bench-results/"
	@echo "make bench-scale  cost by size: partitions, tables, columns, records, distant servers; half an hour, BENCH=--large for more; writes bench-results/"
	@echo "make peers        measure it beside what one would use instead: speed, a poison record, SIGKILL; writes bench-results/"
	@echo "make door         the HTTP front door beside the bare floor under it and beside Telegraf, by wrk; writes bench-results/"
	@echo "make serve-bench  answers by a primary key beside pgbench and FastAPI, and a long CSV beside psql; by wrk; writes bench-results/"
	@echo "make serve-contract  the document of rowmill serve under two validators and schemathesis, and its page in a browser"
	@echo "make faults       prove it: 500 kills and every other fault, 20 minutes; DURATION=2h SEED=7; writes bench-results/"
	@echo "make verify-large  time rowmill verify on 100 million rows, and let it find seven damaged ones; 9 GB of disk"
	@echo "make mutants      prove the tests: plants twenty-five bugs, one after another, and shows which test notices; BUGS=19 for one"
	@echo "make ways         compare the ways to write rows, look tokens up and keep positions; writes bench-results/"
	@echo "make loadtester-proof  prove the load tester itself; writes bench-results/ (20 minutes)"
	@echo "make try-systemd  install and run the service under a systemd of its own, as the documents say (needs root)"
	@echo "make check        lints and unit tests, without servers"
	@echo "make fuzz         each fuzz target for a minute, beginning with the seeds of the repository; SECONDS_EACH=600, FUZZ=batch for one"
	@echo "make lint         format, clippy, links, cargo-deny; shellcheck, promtool and systemd-analyze, which 'stack/install --checks' brings"
	@echo "make unit         unit tests"
	@echo "make integration  tests on real servers"
	@echo "make stack-up     start Kafka, PostgreSQL and Redis under target/stack and leave them running"
	@echo "make stack-down   stop them"
	@echo "make clean        stop and remove all of it, and what was built"

demo:
	stack/install
	STACK_DIR=target/demo-stack stack/with stack/demo

example-timeseries:
	stack/install
	STACK_DIR=target/example-stack stack/with examples/timeseries/prove $(if $(KEEP),--keep)

example-timeseries-bench:
	stack/install
	STACK_DIR=target/bench-stack stack/with examples/timeseries/bench

example-timeseries-large:
	stack/install
	STACK_DIR=target/bench-stack stack/with examples/timeseries/large

test:
	stack/install --checks
	$(MAKE) lint unit integration
	BUILT=target/debug RATE=500 SECONDS_EACH=12 INTERVALS=100 $(MAKE) example-timeseries

bench:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/all $(BENCH)

profile:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/profile

bench-quick:
	stack/install
	cargo bench --locked --bench decode
	STACK_DIR=target/bench-stack stack/with benches/run --rounds 1 --name quick $(BENCH)

bench-keyed:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/run --name keyed --rounds 5 \
		$(or $(BENCH),--records 1000000 --subjects raw-keyed --subjects append-keyed --subjects upsert-once --subjects first-once)

door:
	stack/install --checks
	benches/peers/telegraf-listener/peer install
	cargo build --release --locked --workspace --bin rowmill --bin http_floor --bin door
	STACK_DIR=target/bench-stack stack/with target/release/door \
		--beside "Telegraf http_listener_v2=18404=benches/peers/telegraf-listener/peer run" $(DOOR)

serve-bench:
	stack/install
	cargo build --release --locked --workspace --bin rowmill --bin answers
	benches/peers/fastapi/peer install
	STACK_DIR=target/bench-stack stack/with target/release/answers --beside "FastAPI=18412=benches/peers/fastapi/peer run" $(SERVE)

serve-contract:
	stack/install --contract
	cargo test $(FEATURES) --test pipeline --no-run
	STACK_DIR=target/test-stack stack/with cargo test $(FEATURES) --test pipeline -- --ignored contract:: browser:: --nocapture

bench-scale:
	stack/install
	STACK_DIR=target/bench-stack stack/with benches/sizes $(BENCH)

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
	cargo build --release --locked --workspace --bin rowmill --bin verify_large
	STACK_DIR=target/bench-stack stack/with target/release/verify_large $(VERIFY)

mutants:
	stack/install
	STACK_DIR=target/mutants-stack stack/with faults/mutants $(BUGS)

ways:
	stack/install
	cargo build --release --locked --workspace --bin ways
	STACK_DIR=target/bench-stack stack/with target/release/ways $(WAYS)

loadtester-proof:
	stack/install
	cargo build --release --locked --workspace --bin rowmill --bin loadtester --bin loadtester-fake-consumer --bin loadtester-fake-door
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
	.ci/deny

unit:
	cargo test $(FEATURES) --lib --bins $(WITHOUT_SERVERS:%=--test %)

# Built before the servers start: they would only wait for the compiler.
integration:
	cargo test $(FEATURES) $(ON_SERVERS:%=--test %) --no-run
	STACK_DIR=target/test-stack stack/with \
		cargo test $(FEATURES) $(ON_SERVERS:%=--test %) -- --test-threads=$(TEST_THREADS) $(TEST)

fuzz:
	.ci/fuzz $(or $(SECONDS_EACH),60) $(FUZZ)

stack-up:
	stack/up

stack-down:
	stack/down

clean:
	for dir in target/*stack; do STACK_DIR="$$dir" stack/down --wipe; done
	cargo clean
