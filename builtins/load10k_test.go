package builtins

import (
	"fmt"
	"os"
	"testing"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"

	"bj/lang"
)

// zookeeperNamed is the example of the contract under another name.
func zookeeperNamed(i int) string {
	return fmt.Sprintf(`"""ZooKeeper, the low-dependency coordination back end."""

zk = hardware("zk", count = 3, memory = "512MiB", addresses = ["10.20.0.11", "10.20.0.12", "10.20.0.13"])

service(
    name = "zookeeper-%[1]d",
    owner = "coordination-oncall",
    listens = [2181, 2888, 3888],
    endpoints = {"client": [m.tcp(2181) for m in zk]},
)

recipe(
    name = "cold_start",
    service = "zookeeper-%[1]d",
    hardware = [zk],
    tooling = [tool("zkServer.sh", deb = "zookeeper=3.8.0-11", kept = allow("package-store", "read"))],
    conditions = [allow("names", why = "members find each other by name")],
    strategy = [
        step("Write the ensemble configuration", run = lambda m: "echo %%d > /var/lib/zookeeper/myid" %% (m.index + 1)),
        step("Start every server", daemon = True, run = "exec zkServer.sh start-foreground", unit = "zk"),
        validate("a quorum serves", run = "echo srvr | nc localhost 2181", expect = "Mode: (leader|follower)", within = "60s"),
        fault("one member is lost", on = zk[1], crash = True),
    ],
    validation = [
        validate("the rest serves", run = "echo srvr | nc localhost 2181", expect = "Mode: (leader|follower)", at_least = 2, steady = "5s", within = "60s"),
    ],
)
`, i)
}

// BenchmarkLoad10k loads 10,000 recipe files, one after the other with
// starlark.ExecFileOptions and builtins that do nothing (the baseline), and as
// a workspace: with nothing cached, and with everything unchanged. The metric
// x-baseline is a run's time over the baseline's.
func BenchmarkLoad10k(b *testing.B) {
	files := map[string]string{"lib/others.star": others}
	const n = 10_000
	for i := range n {
		files[fmt.Sprintf("r%d/s%d/zk.star", i/100, i%100)] = zookeeperNamed(i)
	}
	ws := workspaceOf(b, files)
	baseline := 0.0
	perOp := func(b *testing.B) float64 { return b.Elapsed().Seconds() / float64(b.N) }
	ratio := func(b *testing.B) {
		if baseline > 0 {
			b.ReportMetric(perOp(b)/baseline, "x-baseline")
		}
	}
	b.Run("baseline", func(b *testing.B) {
		opts := &syntax.FileOptions{Set: true, TopLevelControl: true}
		env := stubs()
		names, err := ws.Files()
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			for _, f := range names {
				src, err := os.ReadFile(ws.Path(f))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := starlark.ExecFileOptions(opts, new(starlark.Thread), f, src, env); err != nil {
					b.Fatal(err)
				}
			}
		}
		baseline = perOp(b)
	})
	check := func(b *testing.B, r *Result) {
		if len(r.Diagnostics) > 0 || len(r.Fleet.Recipes) != n {
			b.Fatal(len(r.Fleet.Recipes), r.Diagnostics[:min(len(r.Diagnostics), 3)])
		}
	}
	b.Run("full", func(b *testing.B) {
		for b.Loop() {
			check(b, load(b, ws, Options{}))
		}
		ratio(b)
	})
	b.Run("full-one-job", func(b *testing.B) {
		for b.Loop() {
			check(b, load(b, ws, Options{Jobs: 1}))
		}
		ratio(b)
	})
	b.Run("full-and-cached", func(b *testing.B) {
		for b.Loop() {
			check(b, load(b, ws, Options{CacheDir: b.TempDir()}))
		}
		ratio(b)
	})
	b.Run("unchanged", func(b *testing.B) {
		opts := Options{CacheDir: b.TempDir()}
		waitRested(b, ws, opts)
		check(b, load(b, ws, opts))
		for b.Loop() {
			check(b, load(b, ws, opts))
		}
		ratio(b)
	})
}

// A stub takes anything and gives something that can stand for hardware.
type stub struct{ starlark.Tuple }

func (s stub) Attr(name string) (starlark.Value, error) {
	if name == "index" {
		return starlark.MakeInt(0), nil
	}
	return starlark.NewBuiltin(name, func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
		return starlark.String("tcp://10.0.0.1:1"), nil
	}), nil
}
func (s stub) AttrNames() []string { return nil }

func stubs() starlark.StringDict {
	machine := stub{}
	env := starlark.StringDict{"struct": starlark.NewBuiltin("struct", starlarkstruct.Make), "json": lang.JSON()}
	for _, v := range Reference() {
		env[v.Name] = starlark.NewBuiltin(v.Name, func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
			return stub{starlark.Tuple{machine, machine, machine}}, nil
		})
	}
	return env
}
