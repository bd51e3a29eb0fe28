package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// parable has recipes that are allowed too much. Every port answers in the lab.
const parable = `"""Allowed too much."""

load("//lib:trial.star", "NET")

m = hardware("m")

service(name = "test", owner = "x")
[service(name = "s%d" % i, owner = "x", endpoints = {"default": ["tcp://192.0.2.10:" + str(port) if i < 10 else "tcp://192.0.2.11:" + str(port)]}) for i, port in enumerate(list(range(7000, 7002)) + list(range(8000, 8004)) + [9001, 9002, 9003, 9004] + list(range(7000, 7002)) + list(range(8000, 8004)) + [9001, 9002, 9003, 9004])]

def ask(host, port):
    return "net 1 tcp 192.0.2.%d %d" % (host, port)

# touches most of what it may, and needs three of it
def greedy(name, conditions, flaky = ""):
    recipe(
        name = name,
        service = "test",
        hardware = [m],
        tooling = [NET],
        conditions = conditions,
        strategy = [
            step("Look around", run = "\n".join(["(%s || true) &" % ask(h, p) for h in [10, 11] for p in [7000, 7001, 8000, 8001, 8002, 8003]]) + "\nwait"),
            step("First", run = ask(10, 7000)),
            step("Second", run = ask(10, 8003)),
            step("Third", run = flaky + ask(11, 8001)),
            step("Finish", run = "touch /root/finished"),
        ],
        validation = [validate("finished", run = "test -e /root/finished", within = "5s")],
    )

greedy(
    "twenty",
    conditions = [
        # the first two
        allow("s0", why = "a"),
        allow("s1"),  # unneeded
        allow("s2"), allow("s3"), allow("s4"),
        allow("s5"),  # kept
        # hosts that nobody asks
        allow("udp://192.0.2.10:7000"), allow("udp://192.0.2.10:7001"), allow("udp://192.0.2.10:8000"), allow("udp://192.0.2.10:8001"),
        allow("s10"), allow("s11"),
        allow("s12"),
        allow("s13"),  # kept as well
        allow("s14"), allow("s15"),
        allow("udp://192.0.2.11:7000"), allow("udp://192.0.2.11:7001"), allow("udp://192.0.2.11:8000"), allow("udp://192.0.2.11:8001"),
    ],
)

greedy(
    "flaky",
    conditions = [
        allow("s0"),
        allow("s1"),
        allow("s5"),
        allow("s13"),
        allow("s14"),
    ],
    flaky = "test $(od -An -N1 -tu1 /dev/urandom) -ge 40\n",
)

greedy(
    "everything",
    conditions = [allow("*")],
)
`

// paredTwenty is what is left of twenty's conditions.
const paredTwenty = `greedy(
    "twenty",
    conditions = [
        # the first two
        allow("s0", why = "a"),
        allow("s5"),  # kept
        allow("s13"),  # kept as well
    ],
)
`

// TestPare pares in a lab: 20 allowed of which 3 are needed, in at most 8 runs;
// with a step that fails at random, interrupted and resumed; and everything.
func TestPare(t *testing.T) {
	l := newLab(t)
	dir := openDir(t)
	write := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"trial.star", "net.pl"} {
		data, err := os.ReadFile(filepath.Join("testdata", "verdicts", "lib", name))
		if err != nil {
			t.Fatal(err)
		}
		write("lib/"+name, data)
	}
	write("bj.star", nil)
	write("p.star", []byte(parable))
	home := l.folder(t, true)
	file := func() string {
		data, err := os.ReadFile(filepath.Join(dir, "p.star"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	runs := regexp.MustCompile(`\((\d+) runs`)
	kept := regexp.MustCompile(`(?m)^  kept     (.*)\n           without it: step "(.*?)" failed`)

	t.Run("twenty", func(t *testing.T) {
		out, _, code := l.pare(t, dir, home, nil, "//:twenty")
		m := runs.FindStringSubmatch(out)
		if code != exitOK || m == nil {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		if n, _ := strconv.Atoi(m[1]); n > 8 {
			t.Errorf("%d runs", n)
		}
		var got []string
		for _, k := range kept.FindAllStringSubmatch(out, -1) {
			got = append(got, k[1]+" "+k[2])
		}
		if want := `allow("s0") First, allow("s5") Second, allow("s13") Third`; strings.Join(got, ", ") != want {
			t.Errorf("kept %q, want %s\n%s", got, want, out)
		}
		if !strings.Contains(out, "+++ b/p.star") || !strings.Contains(out, "never used") {
			t.Errorf("no diff, or nothing unused:\n%s", out)
		}
		if file() != parable {
			t.Error("the file was changed without --write")
		}
	})
	t.Run("flaky, interrupted", func(t *testing.T) {
		_, errs, code := l.pare(t, dir, home, func(stderr string, p *os.Process) bool {
			return strings.Contains(stderr, "run 4:") && p.Signal(syscall.SIGINT) == nil
		}, "//:flaky", "--repeat", "3")
		if code != exitInterrupted || !strings.Contains(errs, "goes on from there") {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		out, errs, code := l.pare(t, dir, home, nil, "//:flaky", "--repeat", "3")
		if code != exitOK || !strings.Contains(errs, "going on after 3 runs") {
			t.Fatalf("exit code %d\n%s\n%s", code, out, errs)
		}
		if got := kept.FindAllStringSubmatch(out, -1); len(got) != 3 || got[0][1] != `allow("s0")` || got[1][1] != `allow("s5")` || got[2][1] != `allow("s13")` {
			t.Errorf("kept: %v\n%s", got, out)
		}
	})
	t.Run("written", func(t *testing.T) {
		out, errs, code := l.pare(t, dir, home, nil, "//:twenty", "--write")
		if code != exitOK || !strings.Contains(file(), paredTwenty) {
			t.Fatalf("exit code %d\n%s\n%s\n%s", code, out, errs, file())
		}
		if strings.Contains(out, "+++") {
			t.Errorf("a diff as well:\n%s", out)
		}
	})
	t.Run("everything", func(t *testing.T) {
		out, errs, code := l.pare(t, dir, home, nil, "//:everything", "--write")
		if code != exitOK {
			t.Fatalf("exit code %d\n%s\n%s", code, out, errs)
		}
		got := kept.FindAllStringSubmatch(out, -1)
		if len(got) != 3 || strings.Contains(file(), `allow("*")`) || strings.Count(file(), "why = \"without it: ") != 3 {
			t.Errorf("kept: %v\n%s\n%s", got, out, file())
		}
		if r := bjTestIn(t, l, dir, true, home, "//:everything", "//:twenty"); r.exit != exitOK {
			t.Errorf("pared, they do not recover:\n%s", r.stderr)
		}
	})
}

// pare runs bj pare, and stop as long as it returns false.
func (l *lab) pare(t *testing.T, dir, home string, stop func(stderr string, p *os.Process) bool, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := l.bj(ctx, t, true, home, append([]string{"pare", "--results", filepath.Join(home, "results")}, args...)...)
	cmd.Dir = dir
	var out bytes.Buffer
	errs := &locked{}
	cmd.Stdout, cmd.Stderr = &out, errs
	if err := l.start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var watch sync.WaitGroup
	if stop != nil {
		watch.Go(func() {
			for !stop(errs.String(), cmd.Process) {
				select {
				case <-ended:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
	err := cmd.Wait()
	close(ended)
	watch.Wait()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatalf("%v\n%s", err, errs)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// locked is a buffer that is read while it is written.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
