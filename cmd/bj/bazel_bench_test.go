package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkGraphCommand is the whole of bj graph on 2,000 packages that it has
// read before, as a process of its own, beside bazel query in its warm server on
// as many packages with the same dependencies. Bazel is asked for what it has
// the nearest answer to: all that all targets depend on.
func BenchmarkGraphCommand(b *testing.B) {
	if _, err := exec.LookPath("bazel"); err != nil {
		b.Fatal("bazel is not installed: apt-get install bazel-bootstrap")
	}
	const packages = 2000
	dir := b.TempDir()
	put := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	put("bj/bj.star", "")
	put("bazel/WORKSPACE", "")
	for i := range packages {
		var allows, deps []string
		for _, j := range []int{i / 2, i / 3, i / 7, i - 1} {
			if j >= 0 && j < i {
				allows = append(allows, fmt.Sprintf("allow(\"s%d\")", j))
				deps = append(deps, fmt.Sprintf("\"//p%d:s%d\"", j, j))
			}
		}
		put(fmt.Sprintf("bj/p%d/p.star", i), fmt.Sprintf(`service(name = "s%[1]d", owner = "o%[2]d")
recipe(
    name = "r",
    service = "s%[1]d",
    hardware = [hardware("m")],
    conditions = [%[3]s],
    strategy = [step("Start", run = "true")],
    validation = [validate("It serves", run = "false")],
)
`, i, i%50, strings.Join(dedupe(allows), ", ")))
		put(fmt.Sprintf("bazel/p%d/BUILD", i), fmt.Sprintf("filegroup(name = \"s%d\", srcs = [%s], visibility = [\"//visibility:public\"])\n", i, strings.Join(dedupe(deps), ", ")))
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	// The test program is bj where its name is: see testscript.Main.
	program := filepath.Join(dir, "bin", "bj")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.Link(self, program); err != nil {
		if err := os.Symlink(self, program); err != nil {
			b.Fatal(err)
		}
	}
	run := func(folder string, env []string, args ...string) time.Duration {
		cmd := exec.CommandContext(b.Context(), args[0], args[1:]...)
		cmd.Dir = filepath.Join(dir, folder)
		cmd.Env = append(os.Environ(), env...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		start := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatalf("%v: %v\n%s", args, err, &errs)
		}
		return time.Since(start)
	}
	graph := func() time.Duration {
		return run("bj", []string{"BJ_CACHE=" + filepath.Join(dir, "cache"), "XDG_STATE_HOME=" + filepath.Join(dir, "state")}, program, "graph", "--cycles", "//...")
	}
	base := "--output_user_root=" + filepath.Join(dir, "root")
	query := func() time.Duration { return run("bazel", nil, "bazel", base, "query", "deps(//...)") }
	defer run("bazel", nil, "bazel", base, "shutdown")
	graph()
	query()
	var ours, theirs time.Duration
	for b.Loop() {
		ours += graph()
		b.StopTimer()
		theirs += query()
		b.StartTimer()
	}
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x-bazel-query")
}

// dedupe drops repeats; the order stays.
func dedupe(list []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
