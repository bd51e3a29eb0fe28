package builtins

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"bj/lang"
)

// workspaceOf writes files into a fresh workspace; bj.star is added.
func workspaceOf(t testing.TB, files map[string]string) *lang.Workspace {
	t.Helper()
	root := t.TempDir()
	if _, ok := files["bj.star"]; !ok {
		writeFile(t, filepath.Join(root, "bj.star"), "")
	}
	for name, text := range files {
		writeFile(t, filepath.Join(root, filepath.FromSlash(name)), text)
	}
	ws, err := lang.FindWorkspace(root)
	if err != nil {
		t.Fatal(err)
	}
	return ws
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), fs.ModePerm); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, ws *lang.Workspace, opts Options) *Result {
	t.Helper()
	r, err := Load(context.Background(), ws, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const zookeeper = `"""ZooKeeper, the low-dependency coordination back end."""

zk = hardware("zk", count = 3, memory = "512MiB", addresses = ["10.20.0.11", "10.20.0.12", "10.20.0.13"])

service(
    name = "zookeeper",
    owner = "coordination-oncall",
    listens = [2181, 2888, 3888],
    endpoints = {"client": [m.tcp(2181) for m in zk]},
)

recipe(
    name = "cold_start",
    service = "zookeeper",
    hardware = [zk],
    tooling = [tool("zkServer.sh", deb = "zookeeper=3.8.0-11", kept = allow("package-store", "read"))],
    conditions = [allow("names", why = "members find each other by name")],
    strategy = [
        step("Write the ensemble configuration", run = lambda m: "echo %d > /var/lib/zookeeper/myid" % (m.index + 1)),
        step("Start every server", daemon = True, run = "exec zkServer.sh start-foreground", unit = "zk"),
        validate("a quorum serves", run = "echo srvr | nc localhost 2181", expect = "Mode: (leader|follower)", within = "60s"),
        fault("one member is lost", on = zk[1], crash = True),
    ],
    validation = [
        validate("the rest serves", run = "echo srvr | nc localhost 2181", expect = "Mode: (leader|follower)", at_least = 2, steady = "5s", within = "60s"),
    ],
)
`

const others = `
service(name = "names", owner = "o", endpoints = {"dns": ["udp://10.0.0.53:53"]})
service(name = "package-store", owner = "o", endpoints = {"read": ["https://pkgs.internal/read"], "write": ["https://pkgs.internal/write"]})
`

func TestContractExample(t *testing.T) {
	ws := workspaceOf(t, map[string]string{"recipes/zookeeper/zk.star": zookeeper, "lib/others.star": others})
	r := load(t, ws, Options{})
	if len(r.Diagnostics) > 0 {
		t.Fatal(r.Diagnostics)
	}
	recipes, diags, err := r.Select([]string{"//recipes/..."}, "")
	if err != nil || len(diags) > 0 || len(recipes) != 1 {
		t.Fatal(recipes, diags, err)
	}
	rec := recipes[0]
	if rec.Label != "//recipes/zookeeper:cold_start" || rec.FileDoc == "" || len(rec.Machines()) != 3 {
		t.Errorf("%+v", rec)
	}
	s := rec.Strategy[0].Step
	if s.Run[2].Text != "echo 3 > /var/lib/zookeeper/myid" || s.Unit != "write-the-ensemble-configuration" {
		t.Errorf("%+v", s)
	}
	if got := rec.Machines()[1]; got.V4.String() != "10.20.0.12" || got.V6.String() != "fd62:6a::11" || !got.Declared {
		t.Errorf("%+v", got)
	}
	if got := rec.Validation[0].AtLeast; got != 2 {
		t.Errorf("at least %d", got)
	}
	if got := rec.Conditions[0]; got.Pathways[0] != "dns" || got.Text != `allow("names")` || got.Pos.String() != "recipes/zookeeper/zk.star:17:19" {
		t.Errorf("%+v", got)
	}
}
