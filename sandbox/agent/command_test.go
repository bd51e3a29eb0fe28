package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/sandbox"
)

func TestEnvironment(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		out, _, e := m.run(t, sandbox.Command{
			Argv: []string{"env"},
			Env:  map[string]string{"TOKEN": "a b\xff\nc", "HOME": "/tmp"},
		})
		want := map[string]bool{}
		for _, w := range []string{"PATH=" + searchPath, "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "LANG=C.UTF-8", "TOKEN=a b\xff", "c", "HOME=/tmp"} {
			want[w] = true
		}
		for line := range strings.Lines(out) {
			line = strings.TrimSuffix(line, "\n")
			if !want[line] {
				t.Errorf("unexpected %q", line)
			}
			delete(want, line)
		}
		if len(want) > 0 || e.Code != 0 {
			t.Errorf("%+v, without %v", e, want)
		}
	})
}

// A command has no input, and nothing of the agent's.
func TestDescriptors(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		got := m.script(t, "cat; ls /proc/self/fd; readlink /proc/self/fd/0; umask; ulimit -c")
		// ls itself opens the folder, as 3.
		if want := "0\n1\n2\n3\n/dev/null\n0022\n0\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		out, _, _ := m.run(t, sandbox.Command{Argv: []string{"ls", "/proc/self/fd"}})
		if out != "0\n1\n2\n3\n" {
			t.Errorf("argv: got %q", out)
		}
	})
}

// A script may be larger than an argument; its lines are numbered from 1, and
// the shell that runs it does not carry its words as arguments.
func TestScript(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		long := "#!/bin/sh\n" + strings.Repeat("# a line that says nothing\n", 40_000) + "echo $0 $#; no-such-program"
		out, errs, e := m.run(t, sandbox.Command{Script: long})
		if out != "sh 0\n" || e.Code != 127 || !strings.Contains(errs, "40002") {
			t.Errorf("%+v %q %q", e, out, errs)
		}
		if out := m.script(t, "tr '\\0' ' ' < /proc/$$/cmdline; # etcd-server"); strings.Contains(out, "etcd-server") {
			t.Errorf("the shell's arguments hold the script: %q", out)
		}
		out, errs, e = m.run(t, sandbox.Command{Script: "echo one\nif then"})
		if e.Code != 2 || !strings.Contains(errs, "2") {
			t.Errorf("syntax error: %+v %q %q", e, out, errs)
		}
		if out := m.script(t, ""); out != "" {
			t.Errorf("an empty script: %q", out)
		}
		if out := m.script(t, "cat <<X\n\xff\xfe\nX\n"); out != "\xff\xfe\n" {
			t.Errorf("bytes: %q", out)
		}
	})
}

func TestNotStarted(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		for _, c := range []struct {
			c    sandbox.Command
			want string
		}{
			{sandbox.Command{Argv: []string{"no-such-program"}}, "no-such-program"},
			{sandbox.Command{Argv: []string{"/no/such"}}, "/no/such"},
			{sandbox.Command{Script: "true", User: "nobody-at-all"}, `unknown user "nobody-at-all"`},
			{sandbox.Command{Script: "true", Env: map[string]string{"X": strings.Repeat("x", 1<<18)}}, "argument list too long"},
			{sandbox.Command{Script: "true", Env: map[string]string{"X": "a\x00b"}}, "$X holds a zero byte"},
			{sandbox.Command{Script: strings.Repeat("x", maxFrame)}, "more than"},
		} {
			p, err := m.Start(testContext(t), c.c, nil)
			if err == nil || p != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		}
		// The same stream goes on.
		m.script(t, "true")
	})
}

func TestUsers(t *testing.T) {
	t.Run("many ids", func(t *testing.T) {
		m := newMachine(t, true)
		out, _, e := m.run(t, sandbox.Command{Script: "id; pwd; echo $HOME $USER", User: "daemon"})
		if e.Code != 0 || !strings.HasPrefix(out, "uid=1(daemon) gid=1(daemon) groups=1(daemon)\n/usr/sbin\n/usr/sbin daemon\n") {
			t.Errorf("%+v %q", e, out)
		}
		out, _, _ = m.run(t, sandbox.Command{Script: "id -un; pwd", User: "65534"})
		if out != "nobody\n/\n" {
			t.Errorf("by number, without a home: %q", out)
		}
		// Without no_new_privs, programs that change the user work.
		if out := m.script(t, "su -s /bin/sh -c 'id -un' daemon"); out != "daemon\n" {
			t.Errorf("su: %q", out)
		}
	})
	t.Run("one id", func(t *testing.T) {
		m := newMachine(t, false)
		if out := m.script(t, "id -u"); out != "0\n" {
			t.Errorf("root: %q", out)
		}
		_, err := m.Start(testContext(t), sandbox.Command{Script: "true", User: "daemon"}, nil)
		if err == nil || !strings.Contains(err.Error(), "id 1 does not exist in this machine") {
			t.Errorf("got %v", err)
		}
	})
}

func TestMuchOutput(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		const size = 20 << 20
		var mu sync.Mutex
		n := map[sandbox.Stream]int{}
		sum := sha256.New()
		var tail []byte
		p, err := m.Start(testContext(t), sandbox.Command{
			Script: "head -c 20971520 /dev/urandom > /tmp/agent-test.$$; cat /tmp/agent-test.$$; cat /tmp/agent-test.$$ >&2; sha256sum < /tmp/agent-test.$$; rm /tmp/agent-test.$$",
		}, func(s sandbox.Stream, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			n[s] += len(b)
			if s == sandbox.Stderr {
				sum.Write(b)
			} else {
				tail = append(tail[max(0, len(tail)-100):], b...)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if e, err := p.Wait(testContext(t)); err != nil || e.Code != 0 {
			t.Fatalf("%+v %v", e, err)
		}
		t.Logf("40 MiB in %s", time.Since(begin))
		mu.Lock()
		defer mu.Unlock()
		if n[sandbox.Stderr] != size || n[sandbox.Stdout] < size {
			t.Errorf("%v bytes", n)
		}
		if want := hex.EncodeToString(sum.Sum(nil)); !strings.Contains(string(tail), want+"  -\n") {
			t.Errorf("the output's sum is not %s", want)
		}
	})
}

// What a command wrote comes before its exit, and equals what it wrote.
func TestOutputBeforeExit(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		for i := range 20 {
			tr := newTranscript()
			p, err := m.Start(testContext(t), sandbox.Command{Script: "head -c 60000 /dev/zero; sleep 1000 & echo end >&2"}, tr.write)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Wait(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if n := len(tr.String(sandbox.Stdout)); n != 60000 || tr.String(sandbox.Stderr) != "end\n" {
				t.Fatalf("round %d: %d bytes, %q", i, n, tr.String(sandbox.Stderr))
			}
		}
	})
}

// A child that goes on writing neither delays the exit nor is cut off.
func TestBackground(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		tr := newTranscript()
		p, err := m.Start(testContext(t), sandbox.Command{Script: "(while ! test -e /tmp/agent-go.$$; do sleep 0.01; done; rm /tmp/agent-go.$$; echo late) & echo $$", Unit: "bg"}, tr.write)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(testContext(t)); err != nil || e.Code != 0 {
			t.Fatalf("%+v %v", e, err)
		}
		pid := strings.TrimSpace(tr.String(sandbox.Stdout))
		m.script(t, "touch /tmp/agent-go."+pid)
		eventually(t, "late output", func() bool { return tr.String(sandbox.Stdout) == pid+"\nlate\n" })

		p, err = m.Start(testContext(t), sandbox.Command{Script: "yes & exit 3", Unit: "yes"}, tr.write)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(testContext(t)); err != nil || e.Code != 3 {
			t.Fatalf("%+v %v", e, err)
		}
		if n, err := m.KillUnit(testContext(t), "yes"); n != 1 || err != nil {
			t.Errorf("killed %d, %v", n, err)
		}
	})
}

func TestManyForks(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		out := m.script(t, "i=0; while [ $i -lt 300 ]; do (echo $i; sleep 0.1) & i=$((i+1)); done; wait")
		if n := strings.Count(out, "\n"); n != 300 {
			t.Errorf("%d lines", n)
		}
		// As many commands at once, each with its own exit.
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				tr := newTranscript()
				p, err := m.Start(testContext(t), sandbox.Command{Script: fmt.Sprintf("echo %d; exit %d", i, i%100), Unit: "u" + strconv.Itoa(i%7)}, tr.write)
				if err != nil {
					t.Error(err)
					return
				}
				e, err := p.Wait(testContext(t))
				if err != nil || e.Code != i%100 || tr.String(sandbox.Stdout) != strconv.Itoa(i)+"\n" {
					t.Errorf("%d: %+v %v %q", i, e, err, tr.String(sandbox.Stdout))
				}
			})
		}
		wg.Wait()
		noZombies(t, m)
		if root := m.cgroup(); root != "" {
			eventually(t, "removing the cgroups of commands that have ended", func() bool {
				left, _ := filepath.Glob(root + "/u-*/c-*") // those of units stay, for rules
				return len(left) == 0
			})
		}
	})
}

// noZombies says what nobody reaped.
func noZombies(t *testing.T, m *machine) {
	t.Helper()
	eventually(t, "reaping", func() bool {
		return m.script(t, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true") == "0\n"
	})
}

// Orphans are the agent's to reap.
func TestReaping(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		m.script(t, "for i in 1 2 3 4 5 6 7 8 9; do (setsid sh -c 'sleep 0.01 & sleep 0.01' &) ; done")
		noZombies(t, m)
	})
}

// A command whose output nobody takes blocks; others are not held up, and
// nothing of either is lost.
func TestSlowConsumer(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		const size = 2 << 20
		gate := make(chan struct{})
		n := 0
		slow, err := m.Start(testContext(t), sandbox.Command{Script: "head -c 2097152 /dev/zero"}, func(_ sandbox.Stream, b []byte) {
			<-gate
			n += len(b)
		})
		if err != nil {
			t.Fatal(err)
		}
		var out string
		for range 5 {
			out += m.script(t, "head -c 1000000 /dev/zero | tr '\\0' x")
		}
		if len(out) != 5_000_000 {
			t.Errorf("%d bytes beside the slow one", len(out))
		}
		select {
		case <-slow.Done():
			t.Error("the slow command has ended before its output was taken")
		default:
		}
		close(gate)
		if e, err := slow.Wait(testContext(t)); err != nil || e.Code != 0 || n != size {
			t.Errorf("%+v %v, %d bytes", e, err, n)
		}
	})
}

func TestOOM(t *testing.T) {
	events := filepath.Join(t.TempDir(), "memory.oom_control")
	write := func(n int) {
		if err := os.WriteFile(events, fmt.Appendf(nil, "under_oom 0\noom_kill %d\n", n), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	write(3)
	t.Setenv("AGENT_TEST_OOM", events)
	m := newMachine(t, false)
	if _, _, e := m.run(t, sandbox.Command{Script: "kill -KILL $$"}); e.OOM || e.Signal != "SIGKILL" {
		t.Errorf("killed by itself: %+v", e)
	}
	// The limit kills a child of the shell, or the shell.
	for i, s := range []string{"sh -c 'kill -KILL $$'", "kill -KILL $$"} {
		_, _, e := m.run(t, sandbox.Command{Script: fmt.Sprintf("echo oom_kill %d > %s; %s", 4+i, events, s)})
		if !e.OOM || e.Code != 137 {
			t.Errorf("%s: %+v", s, e)
		}
	}
}

func TestPut(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		dir := t.TempDir()
		content := bytes.Repeat([]byte("0123456789\x00\xff"), 400_000)
		for _, f := range []sandbox.File{
			{Path: dir + "/a/b/large", Content: content, Mode: 0o600},
			{Path: dir + "/a/program", Content: []byte("#!/bin/sh\necho ran\n"), Mode: 0o755},
			{Path: dir + "/a/program", Content: []byte("#!/bin/sh\necho again\n"), Mode: 0o4755},
			{Path: dir + "/empty"},
		} {
			if err := m.Put(testContext(t), f); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(dir + "/a/b/large")
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		out := m.script(t, "cd "+dir+"; stat -c '%n %a %s' a/b/large a/program empty; a/program; ls -A . a a/b")
		want := "a/b/large 600 4800000\na/program 4755 21\nempty 644 0\nagain\n.:\na\nempty\n\na:\nb\nprogram\n\na/b:\nlarge\n"
		if out != want {
			t.Errorf("got %q, want %q", out, want)
		}
		for _, bad := range []string{"relative", "/proc/1/no/such", dir + "/empty/below"} {
			if err := m.Put(testContext(t), sandbox.File{Path: bad, Content: content}); err == nil || !strings.Contains(err.Error(), bad) {
				t.Errorf("%s: %v", bad, err)
			}
		}
		m.script(t, "true")
	})
}

// A command that is given up before it has started does not live on.
func TestStartGivenUp(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		for i := range 20 {
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				cancel()
			}()
			p, err := m.Start(ctx, sandbox.Command{Argv: []string{"sleep", "1234"}, Unit: "given-up"}, nil)
			if err == nil {
				p.Kill(testContext(t))
			} else if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			cancel()
		}
		eventually(t, "killing", func() bool {
			return m.script(t, "pgrep -c -x sleep || true") == "0\n"
		})
	})
}
