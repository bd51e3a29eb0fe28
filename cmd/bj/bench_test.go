package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// BenchmarkSideBySide runs 8 recipes as bj test does, as many at once as there
// are cores, and one after the other. The metric is the first's time by the
// second's over the number of cores.
func BenchmarkSideBySide(b *testing.B) {
	const recipes = 8
	dir := b.TempDir()
	b.Setenv("BJ_CACHE", filepath.Join(dir, "cache"))
	files := map[string]string{"bj.star": ""}
	for i := range recipes {
		files[fmt.Sprintf("r%d/r.star", i)] = fmt.Sprintf(`
service(name = "busy-%[1]d", owner = "x")
recipe(
    name = "busy",
    service = "busy-%[1]d",
    hardware = [hardware("m")],
    strategy = [step("Work", run = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done > /srv/done")],
    validation = [validate("done", run = "test -s /srv/done")],
)
`, i)
	}
	for name, text := range files {
		path := filepath.Join(dir, "w", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	test := func(jobs int) time.Duration {
		var out bytes.Buffer
		e := newEnv()
		e.dir = filepath.Join(dir, "w")
		e.stdout, e.stderr = &pipe{w: &out}, &out
		start := time.Now()
		if err := execute(b.Context(), e, []string{"test", "//...", "--jobs", fmt.Sprint(jobs), "--results", filepath.Join(dir, "results")}); err != nil {
			b.Fatalf("%v\n%s", err, &out)
		}
		return time.Since(start)
	}
	cores := runtime.NumCPU()
	test(cores) // builds the agent, if it must
	var together, alone time.Duration
	for b.Loop() {
		together += test(cores)
		b.StopTimer()
		alone += test(1)
		b.StartTimer()
	}
	b.ReportMetric(together.Seconds()/(alone.Seconds()/float64(cores)), "x-over-cores")
}
