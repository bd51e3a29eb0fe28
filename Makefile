# make test   everything that has to hold, on a fresh Debian machine with Go
# make bench  each benchmark beside its baseline, from the same run
# make build  the static program, bin/bj

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.3.0

# What the tests need, as program:package of Debian; what is there already stays
# as it is: the seal's rules are read back with nft, links with ip, lease times
# are compared with bwrap, the tests of --changed-since make a repository, the
# example of Bazel is run by Debian's, and
# the graph's page is opened in a Chromium, where axe-core looks at it.
NEEDS := nft:nftables ip:iproute2 tc:iproute2 bwrap:bubblewrap nsenter:util-linux pgrep:procps perl:perl git:git dpkg-deb:dpkg chromium:chromium java:default-jre-headless npm:npm dot:graphviz bazel:bazel-bootstrap virsh:libvirt-clients libvirtd:libvirt-daemon virt-qemu-run:libvirt-daemon-driver-qemu virtlogd:libvirt-daemon-system qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs

AXE       := axe-core@4.14.1
VNU       := vnu-jar@26.9.27
TESTCACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bj-test

# runbooks writes docs/runbooks again, from recipes alone: a test compares them.
runbooks:
	@rm -rf docs/runbooks bin/no-results && mkdir -p bin/no-results
	@$(GO) run ./cmd/bj runbook //... -o docs/runbooks --results bin/no-results

.PHONY: runbooks build test bench setup fmt vet staticcheck govulncheck layout unit fleet few virtual test-libvirt

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/bj ./cmd/bj

test: setup fmt vet staticcheck govulncheck layout fleet few unit

# setup installs what is missing, and nothing where nothing is.
setup:
	@missing=; \
	for n in $(NEEDS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $${n%%:*} >/dev/null || missing="$$missing $${n##*:}"; done; \
	if [ -n "$$missing" ]; then \
		echo "== setup: installing$$missing"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		export DEBIAN_FRONTEND=noninteractive; \
		$$sudo apt-get update -qq </dev/null && $$sudo apt-get install -qq -y --no-install-recommends $$missing </dev/null >/dev/null; \
	fi
	@dir="$(TESTCACHE)/$(subst @,-,$(AXE))"; \
	[ -f "$$dir/node_modules/axe-core/axe.min.js" ] || { echo "== setup: $(AXE), for tests"; mkdir -p "$$dir"; npm install --silent --no-audit --no-fund --prefix "$$dir" $(AXE) </dev/null >/dev/null; }
	@dir="$(TESTCACHE)/$(subst @,-,$(VNU))"; \
	[ -f "$$dir/node_modules/vnu-jar/build/dist/vnu.jar" ] || { echo "== setup: $(VNU), for tests"; mkdir -p "$$dir"; npm install --silent --no-audit --no-fund --prefix "$$dir" $(VNU) </dev/null >/dev/null; }
	@echo "== setup: $$($(GO) version)"
	@$(GO) mod download

fmt:
	@echo "== gofmt"
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted:"; echo "$$unformatted"; exit 1; fi

vet:
	@echo "== go vet"
	@$(GO) vet ./...

staticcheck:
	@echo "== staticcheck"
	@$(GO) run $(STATICCHECK) ./...

# govulncheck asks a database; where that is out of reach nothing is known, and
# that is said.
govulncheck:
	@echo "== govulncheck"
	@out=$$(mktemp); trap 'rm -f "$$out"' EXIT; \
	if $(GO) run $(GOVULNCHECK) ./... >"$$out" 2>&1; then tail -n 1 "$$out"; \
	elif grep -q 'fetching vulnerabilities' "$$out"; then \
		echo "govulncheck: its database is out of reach, so known vulnerabilities were not looked for"; \
	else cat "$$out"; exit 1; fi

layout:
	@echo "== the import table"
	@$(GO) test -count=1 -run 'TestImports|TestFolders|TestLangKnowsNoRecipe|TestNoRegistration' ./cmd/bj

fleet:
	@echo "== the demonstration fleet"
	@$(GO) run ./cmd/bj test //recipes/... </dev/null

# What takes long where machines are emulated, hours: the whole fleet in virtual
# machines, every recipe whose verdict or cause is known, and all that the suite of
# every provider holds of them.
test-libvirt: virtual
	@echo "== known verdicts and causes, in virtual machines"
	@$(GO) test -v -timeout 120m -run 'TestVerdicts$$|TestBlame' ./cmd/bj -args -in-machines </dev/null
	@echo "== the suite of every provider, in virtual machines"
	@$(GO) test -v -timeout 120m -run TestConformance ./sandbox/libvirt </dev/null

# The same recipes in virtual machines: all of them, or those that VIRTUAL names.
# Libvirt is started for them where it does not run, and ended.
VIRTUAL ?= //recipes/...

virtual: setup
	@echo "== in virtual machines: $(VIRTUAL)"
	@pids=; log=$$(mktemp); trap '[ -z "$$pids" ] || { kill $$pids 2>/dev/null || true; wait; }; rm -f "$$log"' EXIT; \
	if ! virsh -c qemu:///system version >/dev/null 2>&1; then \
		virtlogd 2>>"$$log" & pids=$$!; libvirtd 2>>"$$log" & pids="$$pids $$!"; \
		timeout 60 sh -c 'until virsh -c qemu:///system version >/dev/null 2>&1; do sleep 0.2; done' || { cat "$$log"; echo "virtual: libvirtd does not answer"; exit 1; }; \
	fi; \
	$(GO) run ./cmd/bj test --sandbox libvirt --jobs 1 $(VIRTUAL) </dev/null

# few are those of every test.
few:
	@$(MAKE) --no-print-directory virtual VIRTUAL="//recipes/zookeeper //recipes/names //recipes/certificates //recipes/storage"

# Tests that look for what was left behind on the machine run alone, after the
# others: they cannot tell another test's machines from their own.
ALONE := ./sandbox/ns ./sandbox/libvirt ./cmd/bj

unit:
	@echo "== go test"
	@$(GO) test $$($(GO) list ./... | grep -v -x -e bj/sandbox/ns -e bj/sandbox/libvirt -e bj/cmd/bj) </dev/null
	@$(GO) test -p 1 -short -timeout 40m $(ALONE) </dev/null

# Every benchmark reports ours, baseline, ratio and goal as metrics of its own.
bench: setup
	@$(GO) test -run '^$$' -bench . ./... </dev/null 2>&1 | awk -f cmd/bj/testdata/bench.awk
