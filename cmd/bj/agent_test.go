package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The agent is static whatever this program is, is built once by all who need
// it, and is bj.
func TestStaticAgent(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Fatal("the test needs go on PATH")
	}
	cache := t.TempDir()
	var mu sync.Mutex
	var said []string
	say := func(s string) { mu.Lock(); defer mu.Unlock(); said = append(said, s) }
	var wg sync.WaitGroup
	paths := make([]string, 3)
	for i := range paths {
		wg.Go(func() {
			path, err := staticAgent(t.Context(), cache, say)
			if err != nil {
				t.Error(err)
			}
			paths[i] = path
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if static, err := isStatic(self); err != nil {
		t.Fatal(err)
	} else if static {
		if paths[0] != self || len(said) != 0 {
			t.Errorf("a static bj is its own agent; got %s, and %q was said", paths[0], said)
		}
		return
	}
	if len(said) != 1 {
		t.Errorf("it was built %d times, not once: %q", len(said), said)
	}
	for _, path := range paths {
		if path != paths[0] {
			t.Errorf("two agents: %s, %s", path, paths[0])
		}
	}
	if static, err := isStatic(paths[0]); err != nil || !static {
		t.Errorf("isStatic = %v, %v", static, err)
	}
	out, err := exec.Command(paths[0], "version").Output()
	if err != nil || !strings.HasPrefix(string(out), "bj "+version) {
		t.Errorf("the agent's version is %q, %v", out, err)
	}
}

func TestPruneAgents(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-60 * 24 * time.Hour)
	for _, name := range []string{"bj-mine", "bj-old", "bj-new", "lock"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if name != "bj-new" {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := pruneAgents(dir, filepath.Join(dir, "bj-mine")); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if got := strings.Join(left, " "); got != "bj-mine bj-new lock" {
		t.Errorf("left: %s", got)
	}
}
