package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bj/run/event"
)

// kills is how many moments TestKilledAtAnyMoment tries, and killsAtOnce how
// many bj run at a time.
const (
	kills       = 100
	killsAtOnce = 5
)

// restless is a recipe that talks to production all the time, and does not end.
const restless = `"""Never quiet."""

load("//lib:trial.star", "NET")

m = hardware("m", count = 2)

service(name = "test", owner = "x")

recipe(
    name = "restless",
    service = "test",
    hardware = [m],
    tooling = [NET],
    conditions = [allow("tcp://192.0.2.10:7000"), allow("udp://192.0.2.10:7001")],
    strategy = [
        step("talk", daemon = True, run = "while :; do net 1 tcp 192.0.2.10 7000; net 1 udp 192.0.2.10 7001; done >/dev/null"),
        step("work", run = "sleep 100"),
    ],
    validation = [validate("never", run = "test -e /root/never", within = "1s")],
)

recipe(
    name = "quick",
    service = "test",
    hardware = [m],
    strategy = [step("work", run = "touch /root/done")],
    validation = [validate("done", run = "test -e /root/done", within = "20s")],
)
`

// TestKilledAtAnyMoment kills bj, the gateway with gate and relay in it, or a
// machine's agent, at random moments: traffic stops, nothing recovers, and when
// the next bj has run nothing is left.
func TestKilledAtAnyMoment(t *testing.T) {
	l := newLab(t)
	dir := openDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"trial.star", "net.pl"} {
		data, err := os.ReadFile(filepath.Join("testdata", "verdicts", "lib", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "lib", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"bj.star": "", "restless.star": restless} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	home := l.folder(t, true)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	victims := map[string]int{}
	talked := 0
	var leases []string
	for done := 0; done < kills; done += killsAtOnce {
		before := l.visits()
		var round sync.WaitGroup
		var mu sync.Mutex
		for range killsAtOnce {
			moment := time.Duration(rng.IntN(2500)) * time.Millisecond
			victim := []string{"bj", "gateway", "agent"}[rng.IntN(3)]
			round.Go(func() {
				killed, events, err := l.killed(t, dir, home, moment, victim)
				mu.Lock()
				defer mu.Unlock()
				victims[killed]++
				if err != nil {
					t.Errorf("killing %s after %s: %v", victim, moment, err)
				}
				for _, e := range events {
					switch {
					case e.Event == event.Lease:
						leases = append(leases, e.Text)
					case e.Verdict != nil && e.Verdict.Verdict == event.Recovered:
						t.Errorf("killing %s after %s: recovered", victim, moment)
					}
				}
			})
		}
		round.Wait()
		// What was on its way has arrived by the second look.
		time.Sleep(100 * time.Millisecond)
		after := l.visits()
		time.Sleep(200 * time.Millisecond)
		if still := l.visits(); still != after {
			t.Errorf("after %d kills production was visited %d times more", done+killsAtOnce, still-after)
		}
		talked += after - before
		if t.Failed() {
			break
		}
	}
	t.Logf("killed %v; production was visited %d times before", victims, talked)
	if talked == 0 {
		t.Error("nothing ever talked to production")
	}
	r := bjTestIn(t, l, dir, true, home, "//:quick")
	if r.exit != exitOK {
		t.Errorf("the next bj: exit code %d\n%s", r.exit, r.stderr)
	}
	l.checkLeftovers(append(leases, r.leases...))
}

// killed runs bj test, kills a part of it at a moment, and returns what it
// killed and the events that there were. It returns when bj has ended.
func (l *lab) killed(t *testing.T, dir, home string, moment time.Duration, victim string) (string, []event.Event, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	cmd := l.bj(ctx, t, true, home, "test", "--json", "--results", filepath.Join(home, "results"), "//:restless")
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := l.start(cmd); err != nil {
		return "", nil, err
	}
	time.Sleep(moment)
	pid := cmd.Process.Pid
	if victim != "bj" {
		inner := hiddenChildrenOf(pid)
		if victim == "agent" && len(inner) > 0 {
			inner = hiddenChildrenOf(inner[0])
		}
		if len(inner) > 0 {
			pid = inner[0]
		} else {
			victim = "bj" // it has no such part yet
		}
	}
	// Between the look and the kill it may have ended by itself.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return victim, nil, err
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		return victim, nil, fmt.Errorf("bj had not ended: %s", &stderr)
	}
	if err == nil {
		return victim, nil, fmt.Errorf("bj has succeeded")
	}
	var events []event.Event
	d := event.NewDecoder(&stdout)
	for {
		e, err := d.Next()
		if err != nil {
			if err != io.EOF && victim != "bj" {
				return victim, events, err
			}
			return victim, events, nil
		}
		events = append(events, e)
	}
}

// hiddenChildrenOf returns a process's children that are bj's hidden commands: it
// asks git something as well.
func hiddenChildrenOf(pid int) []int {
	return slices.DeleteFunc(childrenOf(pid), func(child int) bool {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
		return !bytes.HasPrefix(args, []byte("bj\x00__"))
	})
}

// childrenOf returns the processes whose parent is pid.
func childrenOf(pid int) (found []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if n, err := strconv.Atoi(filepath.Base(dir)); err == nil {
				found = append(found, n)
			}
		}
	}
	return found
}
