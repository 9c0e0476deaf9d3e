# make test    everything, on a fresh Debian with Go (as root: installs what it needs)
# make demo    shows the main job in under a minute (as root)
# make e2e     targets and examples/ end to end: the daemon beside real deployments that fail (as root, ten minutes)
# make matrix  some of the same with servers of other versions, and writes docs/versions.md (as root, some 8 minutes)
# make bench   measures what docs/benchmarks.md shows (as root, some 20 minutes)
# make bench-lettuce  measures what Lettuce does when a pod is replaced (as root, three minutes)
# make lint    gofmt, go vet, staticcheck
# make fuzz    each fuzz test for FUZZTIME
# make build   bin/redisguard
# make man     the man pages, into out/man

GO       ?= go
FUZZTIME ?= 20s

export CGO_ENABLED = 0

.PHONY: build man test e2e matrix demo bench bench-lettuce lint fuzz clean

build:
	$(GO) build -trimpath -o bin/redisguard ./cmd/redisguard

man: build
	./bin/redisguard man out/man

# Packages are tested one after the other: some guard the whole node, some load
# both cores, and their bounds are in seconds.
test:
	./lab/setup.sh test
	$(GO) test -p 1 -count=1 -timeout 20m ./...

# Apart from make test: each test runs a daemon that sees the whole node.
e2e:
	./lab/setup.sh e2e
	$(GO) test -tags e2e -count=1 -timeout 25m ./e2e

# REDISGUARD_E2E_PORTS holds here, too: ports of its own for a run beside others.
matrix:
	./lab/setup.sh matrix
	$(GO) run ./lab/matrix

demo: build
	./lab/setup.sh demo
	$(GO) build -trimpath -o bin/redisguard-demo ./lab/demo
	./bin/redisguard-demo --redisguard ./bin/redisguard

bench: build
	./lab/setup.sh bench
	$(GO) build -trimpath -o bin/redisguard-bench ./lab/bench
	./bin/redisguard-bench --redisguard ./bin/redisguard $(BENCHFLAGS)

bench-lettuce:
	./lab/setup.sh e2e
	$(GO) test -tags e2e -count=1 -timeout 10m -run '^$$' -bench LettuceReplacedPods -benchtime 1x ./e2e

lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt wants:"; echo "$$bad"; exit 1; fi
	$(GO) vet -tags e2e ./...
	$(GO) tool staticcheck -tags e2e ./...

fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; done

clean:
	rm -rf bin out
