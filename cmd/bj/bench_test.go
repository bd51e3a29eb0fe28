package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"bj/run/event"
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

// BenchmarkBlocked measures from an attempt that the seal blocks to the event
// that tells of it, with its process, in the stream of bj test --json, beside the
// second in which bj asks again.
func BenchmarkBlocked(b *testing.B) {
	dir := b.TempDir()
	b.Setenv("BJ_CACHE", filepath.Join(dir, "cache"))
	for name, text := range map[string]string{"bj.star": "", "r.star": `
service(name = "tries", owner = "x")
recipe(
    name = "r",
    service = "tries",
    hardware = [hardware("m")],
    strategy = [step("Try", run = "for p in 1 2 3 4 5 6 7 8; do perl -MSocket -e 'socket(S, AF_INET, SOCK_DGRAM, 0); send(S, q(x), 0, pack_sockaddr_in(shift, inet_aton(q(192.0.2.1))))' 900$p; sleep 0.7; done; echo done > /srv/done")],
    validation = [validate("done", run = "test -s /srv/done")],
)
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	var took time.Duration
	seen := 0
	for b.Loop() {
		var out, errs bytes.Buffer
		e := newEnv()
		e.dir = dir
		e.stdout, e.stderr = &pipe{w: &out}, &errs
		if err := execute(b.Context(), e, []string{"test", "//:r", "--json", "--results", filepath.Join(dir, "results")}); err != nil {
			b.Fatalf("%v\n%s", err, &errs)
		}
		events := event.NewDecoder(&out)
		for {
			x, err := events.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if x.Event == event.BlockedSeen && x.Blocked.Process != nil && x.Blocked.Destination.Address == "192.0.2.1" && x.Blocked.Mattered == nil {
				took += x.Time.Sub(x.Blocked.First)
				seen++
			}
		}
	}
	if seen == 0 {
		b.Fatal("no attempt was told")
	}
	mean := took / time.Duration(seen)
	b.ReportMetric(float64(mean.Nanoseconds()), "ns/op")
	b.ReportMetric(mean.Seconds(), "x-a-second")
}
