package builtins

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"bj/lang"
	"bj/lang/diag"
)

// fleetText is a workspace as text, to compare.
func fleetText(t testing.TB, r *Result) string {
	t.Helper()
	b, err := json.Marshal(r.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + r.Diagnostics.Error()
}

// evaluated counts the modules of a result that did not come from the cache.
func evaluated(r *Result) int {
	n := 0
	for _, m := range r.tree.Modules {
		if !m.Cached() && m.State != nil {
			n++
		}
	}
	return n
}

func cachedWorkspace(t *testing.T) (*lang.Workspace, Options) {
	files := map[string]string{
		"lib/ports.star":  "PORT = 2181\ndef allowed():\n    return allow(\"names\")\n",
		"lib/others.star": others,
		"p/a.star":        "load(\"//lib:ports.star\", \"PORT\")\nservice(name = \"a\", owner = \"o\", listens = [PORT])\n",
	}
	for i := range 10 {
		files[fmt.Sprintf("r%d/zk.star", i)] = zookeeperNamed(i)
	}
	return workspaceOf(t, files), Options{CacheDir: t.TempDir()}
}

// waitRested waits until the files of a workspace are old enough for stat to
// be believed.
func waitRested(t testing.TB, ws *lang.Workspace, opts Options) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		probe := filepath.Join(opts.CacheDir, "probe")
		if err := os.WriteFile(probe, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		a, err1 := os.Stat(probe)
		b, err2 := os.Stat(ws.Path("lib/others.star"))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if a.ModTime().Sub(b.ModTime()) > 2500*time.Millisecond {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the clock of the file system stands still")
		}
	}
}

func TestCache(t *testing.T) {
	ws, opts := cachedWorkspace(t)
	first := load(t, ws, opts)
	if first.Diagnostics.HasErrors() {
		t.Fatal(first.Diagnostics)
	}
	n := len(first.tree.Modules)
	if got := evaluated(first); got != n {
		t.Errorf("%d of %d modules evaluated at first", got, n)
	}
	want := fleetText(t, first)
	check := func(name string, wantEvaluated int, opts Options) {
		t.Helper()
		r := load(t, ws, opts)
		if got := evaluated(r); got != wantEvaluated {
			t.Errorf("%s: %d modules evaluated, want %d", name, got, wantEvaluated)
		}
		if got := fleetText(t, r); got != want {
			t.Errorf("%s: another fleet:\n%s\n%s", name, got, want)
		}
	}
	check("unchanged", 0, opts)
	check("without cache", n, Options{CacheDir: opts.CacheDir, NoCache: true})
	check("another bj", n, Options{CacheDir: opts.CacheDir, Version: "9.9"})
	check("the first bj again", n, opts)

	// The same bytes with new times.
	writeFile(t, ws.Path("r3/zk.star"), zookeeperNamed(3))
	check("touched", 0, opts)

	// A library changes: what loads it is evaluated again.
	writeFile(t, ws.Path("lib/ports.star"), "PORT = 2182\n")
	r := load(t, ws, opts)
	if got := evaluated(r); got != 2 || r.Fleet.Service("a").Listens[0].First != 2182 {
		t.Errorf("%d modules evaluated, %+v", got, r.Fleet.Service("a"))
	}
	writeFile(t, ws.Path("lib/ports.star"), "PORT = 2181\n")
	load(t, ws, opts)

	// A module that loads one that is unchanged: both are evaluated.
	writeFile(t, ws.Path("p/a.star"), "load(\"//lib:ports.star\", \"PORT\")\nservice(name = \"a\", owner = \"o\", listens = [PORT + 1])\n")
	r = load(t, ws, opts)
	if got := evaluated(r); got != 2 || r.Fleet.Service("a").Listens[0].First != 2182 {
		t.Errorf("%d modules evaluated, %+v", got, r.Fleet.Service("a"))
	}

	// A loaded file is deleted.
	if err := os.Remove(ws.Path("lib/ports.star")); err != nil {
		t.Fatal(err)
	}
	r = load(t, ws, opts)
	if len(r.Diagnostics) != 1 || r.Diagnostics[0].Rule != "load" {
		t.Error(r.Diagnostics)
	}
	// Mistakes are not cached.
	r = load(t, ws, opts)
	if len(r.Diagnostics) != 1 || evaluated(r) != 0 {
		t.Error(r.Diagnostics)
	}
}

// TestCacheSameTimes changes bytes and puts size and times back.
func TestCacheSameTimes(t *testing.T) {
	ws, opts := cachedWorkspace(t)
	load(t, ws, opts)
	file := ws.Path("p/a.star")
	for i, settle := range []bool{false, true} {
		if settle {
			waitRested(t, ws, opts)
			load(t, ws, opts)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("b%d", i)
		writeFile(t, file, fmt.Sprintf("load(\"//lib:ports.star\", \"PORT\")\nservice(name = %q, owner = \"\", listens = [PORT])\n", name)[:info.Size()-2]+"\n\n")
		writeFile(t, file, fmt.Sprintf("load(\"//lib:ports.star\", \"PORT\")\nservice(name = \"%c\", owner = \"o\", listens = [PORT])\n", 'b'+i))
		if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		r := load(t, ws, opts)
		if got := r.Fleet.Service(string(rune('b' + i))); got == nil {
			t.Errorf("the old service is there still (settled: %v): %v", settle, r.Diagnostics)
		}
	}
}

func TestCacheDamaged(t *testing.T) {
	ws, opts := cachedWorkspace(t)
	want := fleetText(t, load(t, ws, opts))
	files, err := filepath.Glob(filepath.Join(opts.CacheDir, "facts-*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	good, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += len(good)/40 + 1 {
		bad := append([]byte(nil), good...)
		bad[i] ^= 0x41
		for _, data := range [][]byte{bad, good[:i]} {
			if err := os.WriteFile(files[0], data, 0o666); err != nil {
				t.Fatal(err)
			}
			if got := fleetText(t, load(t, ws, opts)); got != want {
				t.Fatalf("byte %d: another fleet", i)
			}
		}
	}
}

func TestCacheConcurrent(t *testing.T) {
	ws, opts := cachedWorkspace(t)
	want := fleetText(t, load(t, ws, Options{}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 3 {
				if got := fleetText(t, load(t, ws, opts)); got != want {
					t.Error("another fleet")
				}
			}
		})
	}
	wg.Wait()
	left, err := filepath.Glob(filepath.Join(opts.CacheDir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestPrinting checks that a module that prints does so every time.
func TestPrinting(t *testing.T) {
	ws := workspaceOf(t, map[string]string{"p/x.star": "print(\"hello\")\nservice(name = \"a\", owner = \"o\")"})
	opts := Options{CacheDir: t.TempDir()}
	for range 2 {
		printed := ""
		opts.Print = func(pos diag.Pos, text string) { printed += pos.String() + ": " + text }
		load(t, ws, opts)
		if printed != "p/x.star:1:6: hello" {
			t.Errorf("printed %q", printed)
		}
	}
}
