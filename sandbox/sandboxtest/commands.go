package sandboxtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/sandbox"
)

func commandTests() []test {
	return []test{
		{"nothing runs before the seal", testUnsealed},
		{"ends", testEnds},
		{"output", testOutput},
		{"binary output", testBinary},
		{"input is empty", testInput},
		{"forks", testForks},
		{"at once", testAtOnce},
		{"kill", testKill},
		{"units", testUnits},
		{"descriptors", testDescriptors},
		{"memory limit", testMemory},
		{"cpu limit", testCPU},
		{"fork bomb", testForkBomb},
	}
}

func testUnsealed(t *testing.T, s *suite) {
	env := s.lease(t, s.spec(1))
	m := env.Machines()[0]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := m.Start(ctx, sandbox.Command{Script: "true", Unit: "x"}, func(sandbox.Stream, []byte) {})
	if err == nil {
		exit, err := p.Wait(ctx)
		t.Errorf("a command ran before the seal: %+v %v", exit, err)
	}
	s.seal(t, env, sandbox.Policy{})
	must(t, m, "true")
}

func testEnds(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	for _, c := range []struct {
		name    string
		command sandbox.Command
		want    sandbox.Exit
	}{
		{"0", sandbox.Command{Script: "exit 0"}, sandbox.Exit{}},
		{"7", sandbox.Command{Script: "exit 7"}, sandbox.Exit{Code: 7}},
		{"255", sandbox.Command{Script: "exit 255"}, sandbox.Exit{Code: 255}},
		{"the first failure ends a script", sandbox.Command{Script: "false\nexit 0"}, sandbox.Exit{Code: 1}},
		{"not found", sandbox.Command{Script: "no-such-program"}, sandbox.Exit{Code: 127}},
		{"SIGKILL", sandbox.Command{Script: "kill -9 $$"}, sandbox.Exit{Code: 137, Signal: "SIGKILL"}},
		{"SIGTERM", sandbox.Command{Script: "kill $$"}, sandbox.Exit{Code: 143, Signal: "SIGTERM"}},
		{"SIGSEGV", sandbox.Command{Script: "kill -SEGV $$"}, sandbox.Exit{Code: 139, Signal: "SIGSEGV"}},
		{"a child's signal is an exit code", sandbox.Command{Script: "sh -c 'kill -9 $$'"}, sandbox.Exit{Code: 137}},
		{"argv", sandbox.Command{Argv: []string{"sh", "-c", "exit $#", "sh", "", "a b", "*"}}, sandbox.Exit{Code: 3}},
		{"env", sandbox.Command{Script: `test "$A" = "x y
z" && test "$PATH" != ""`, Env: map[string]string{"A": "x y\nz"}}, sandbox.Exit{}},
		{"a child that lives on", sandbox.Command{Script: "sleep 1000 & exit 4"}, sandbox.Exit{Code: 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, m, c.command)
			if got := r.wait(); got != c.want {
				t.Errorf("got %+v, want %+v: %s", got, c.want, r.output())
			}
			closed(t, "Done", r.proc.Done())
		})
	}
	// A program that is not there is either an error or an exit of 127.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := m.Start(ctx, sandbox.Command{Argv: []string{"/no/such/program"}, Unit: "x"}, func(sandbox.Stream, []byte) {})
	if err == nil {
		if exit, err := p.Wait(ctx); err == nil && exit.Code == 0 {
			t.Error("a program that does not exist ended well")
		}
	}
	// Waiting is bounded by the caller, and another wait still tells the end.
	r := start(t, m, sandbox.Command{Script: "while ! test -e /tmp/go; do sleep 0.01; done; exit 3"})
	short, cancelShort := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancelShort()
	if _, err := r.proc.Wait(short); err == nil {
		t.Error("waiting for a command that goes on ended without an error")
	}
	must(t, m, "touch /tmp/go")
	if exit := r.wait(); exit.Code != 3 {
		t.Errorf("%+v", exit)
	}
}

func testOutput(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	r := start(t, m, sandbox.Command{Script: "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done; printf 'no newline'"})
	r.wait()
	if got := r.stdout.String(); got != "out 1\nout 2\nout 3\nout 4\nout 5\nno newline" {
		t.Errorf("stdout: %q", got)
	}
	if got := r.stderr.String(); got != "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n" {
		t.Errorf("stderr: %q", got)
	}
	// As it comes, not at the end.
	r = start(t, m, sandbox.Command{Script: "echo first; while ! test -e /tmp/seen; do sleep 0.01; done; echo second"})
	r.await("first\n")
	must(t, m, "touch /tmp/seen")
	r.wait()
	if got := r.output(); got != "first\nsecond\n" {
		t.Errorf("%q", got)
	}
	// 20 MB, all of it, in order, before Wait returns.
	r = start(t, m, sandbox.Command{Script: "seq 1 2700000"})
	if exit := r.wait(); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	got := r.output()
	if len(got) < 20_000_000 || !strings.HasPrefix(got, "1\n2\n3\n") || !strings.HasSuffix(got, "\n2699999\n2700000\n") {
		t.Errorf("%d bytes of output, which end in %q", len(got), got[max(0, len(got)-40):])
	}
	want := sha256.New()
	for i := 1; i <= 2700000; i++ {
		fmt.Fprintln(want, i)
	}
	if sum := sha256.Sum256([]byte(got)); !bytes.Equal(sum[:], want.Sum(nil)) {
		t.Error("the output was changed on its way")
	}
	// A script as large as they come, beyond what an argument may be.
	var b strings.Builder
	for i := range 30000 {
		fmt.Fprintf(&b, ": line %d of a long script, which does nothing\n", i)
	}
	b.WriteString("echo end\n")
	if out := must(t, m, b.String()); out != "end\n" {
		t.Errorf("a script of %d bytes: %q", b.Len(), out)
	}
	// What a child writes after its command has ended comes all the same.
	r = start(t, m, sandbox.Command{Script: "(while ! test -e /tmp/later; do sleep 0.01; done; echo late) & exit 0"})
	r.wait()
	must(t, m, "touch /tmp/later")
	eventually(t, "a child's late output", func() bool { return strings.Contains(r.output(), "late\n") })
}

func testBinary(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	r := start(t, env.Machines()[0], sandbox.Command{Script: "i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; i=$((i+1)); done; printf '\\377\\376' >&2"})
	r.wait()
	want := make([]byte, 256)
	for i := range want {
		want[i] = byte(i)
	}
	if got := r.stdout.String(); got != string(want) {
		t.Errorf("%q", got)
	}
	if got := r.stderr.String(); got != "\xff\xfe" {
		t.Errorf("%q", got)
	}
}

func testInput(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	if out := must(t, env.Machines()[0], "wc -c; cat; read x || echo none; test -t 0 || echo no terminal"); out != "0\nnone\nno terminal\n" {
		t.Errorf("%q", out)
	}
}

func testForks(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	n := 300
	if s.opts.Virtual {
		n = 50
	}
	loop := func(what string) string {
		return must(t, m, fmt.Sprintf("i=0; while [ $i -lt %d ]; do %s i=$((i+1)); done; wait; echo done", n, what))
	}
	if out := loop("(exit 0) &"); out != "done\n" {
		t.Errorf("%q", out)
	}
	if out := loop("/bin/true;"); out != "done\n" {
		t.Errorf("%q", out)
	}
	loop("(setsid sh -c 'exit 0' &);") // orphans, all reaped
	eventually(t, "orphans are reaped", func() bool {
		return strings.TrimSpace(must(t, m, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")) == "0"
	})
}

func testAtOnce(t *testing.T, s *suite) {
	env := s.sealed(t, 2, sandbox.Policy{})
	var group sync.WaitGroup
	for i := range 40 {
		group.Go(func() {
			m := env.Machines()[i%2]
			r := start(t, m, sandbox.Command{Script: fmt.Sprintf("echo %d; sleep 0.05; echo %d >&2; exit %d", i, i, i), Unit: fmt.Sprint("u", i%5)})
			if exit := r.wait(); exit.Code != i || r.output() != fmt.Sprintf("%d\n%d\n", i, i) {
				t.Errorf("command %d: %+v %q", i, exit, r.output())
			}
		})
	}
	group.Wait()
}

func testKill(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	other := start(t, m, sandbox.Command{Script: "echo up; exec sleep 1234", Unit: "shared"})
	other.await("up")
	r := start(t, m, sandbox.Command{Script: "trap '' TERM INT HUP; setsid sh -c 'sleep 4321' & (sleep 4321 &) ; echo up; sleep 4321", Unit: "shared"})
	r.await("up")
	if err := r.proc.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if exit := r.wait(); exit.Code != 137 || exit.Signal != "SIGKILL" {
		t.Errorf("%+v", exit)
	}
	eventually(t, "all that a command started is dead", func() bool {
		out := must(t, m, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
		return !strings.Contains(out, "sleep 4321")
	})
	select {
	case <-other.proc.Done():
		t.Error("killing one command of a unit has ended another")
	default:
	}
	if err := r.proc.Kill(ctx); err != nil {
		t.Errorf("killing what has ended: %v", err)
	}
}

func testUnits(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	a := start(t, m, sandbox.Command{Unit: "a", Script: `
setsid sleep 1001 &                       # another session
(setsid sh -c 'sleep 1002 & sleep 1003' &)  # twice forked
sh -c 'trap "" TERM HUP INT; sleep 1004' &
echo up
sleep 1005`})
	a.await("up")
	b := start(t, m, sandbox.Command{Unit: "b", Script: "(setsid sleep 2001 &); echo up; sleep 2002"})
	b.await("up")
	count := func(what string) int {
		return len(regexp.MustCompile(`(?m)^sleep `+what).FindAllString(must(t, m, "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p || true; echo; done 2>/dev/null; true"), -1))
	}
	eventually(t, "all processes of both units are up", func() bool { return count("100") == 5 && count("200") == 2 })
	n, err := m.KillUnit(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	// Five that sleep, and the shells that wait for three of them; a shell may
	// have become the program.
	if n < 6 || n > 9 {
		t.Errorf("KillUnit counted %d processes", n)
	}
	// A shell may still see its child die, and end by itself with that code.
	if exit := a.wait(); exit.Code != 137 {
		t.Errorf("%+v", exit)
	}
	if got := count("100"); got != 0 {
		t.Errorf("%d processes of the unit live on", got)
	}
	if got := count("200"); got != 2 {
		t.Errorf("of the other unit %d live on instead of 2", got)
	}
	// Commands that come later to a unit can be killed again; none are no error.
	again := start(t, m, sandbox.Command{Unit: "a", Script: "echo up; sleep 1006"})
	again.await("up")
	if n, err := m.KillUnit(ctx, "a"); err != nil || n < 1 {
		t.Errorf("%d %v", n, err)
	}
	again.wait()
	if n, err := m.KillUnit(ctx, "a"); err != nil || n != 0 {
		t.Errorf("an empty unit: %d %v", n, err)
	}
	if n, err := m.KillUnit(ctx, "never-seen"); err != nil || n != 0 {
		t.Errorf("an unknown unit: %d %v", n, err)
	}
	// Dead however fast it forks.
	forker := start(t, m, sandbox.Command{Unit: "forker", Script: "echo up; f() { while :; do (sleep 3001 & sleep 0.01) & done; }; f"})
	forker.await("up")
	if _, err := m.KillUnit(ctx, "forker"); err != nil {
		t.Fatal(err)
	}
	forker.wait()
	if got := count("300"); got != 0 {
		t.Errorf("%d processes of a unit that forks live on", got)
	}
	// Even what wants another cgroup.
	if s.root {
		c := start(t, m, sandbox.Command{Unit: "c", Script: "for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo $$ > $f; done 2>/dev/null; echo up; sleep 4001"})
		c.await("up")
		if _, err := m.KillUnit(ctx, "c"); err != nil {
			t.Error(err)
		}
		if got := count("4001"); got != 0 {
			t.Log("root that moves a process to another cgroup takes it out of its unit")
		}
	}
}

func testDescriptors(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	r := guest(t, env.Machines()[0], "fds")
	r.wait()
	for _, line := range r.lines() {
		if !strings.HasPrefix(line, "0 ") && !strings.HasPrefix(line, "1 ") && !strings.HasPrefix(line, "2 ") {
			t.Errorf("a command was born with descriptor %s", line)
		}
	}
	if len(r.lines()) != 3 {
		t.Errorf("%q", r.lines())
	}
}

func testMemory(t *testing.T, s *suite) {
	if !s.root {
		t.Skip("an ordinary user's machines have no limits, which is said")
	}
	env := s.sealed(t, 2, sandbox.Policy{})
	m := env.Machines()[0]
	// A daemon beside it, which should outlive the greedy one.
	r := guest(t, m, "fill", "4096")
	exit := r.wait()
	if !exit.OOM || exit.Signal != "SIGKILL" || strings.Contains(r.output(), "filled") {
		t.Errorf("4 GiB on a machine of 256 MiB: %+v %s", exit, r.output())
	}
	if out := must(t, m, "echo alive"); out != "alive\n" {
		t.Errorf("%q", out)
	}
	if r := guest(t, env.Machines()[1], "fill", "100"); r.wait().Code != 0 {
		t.Errorf("100 MiB on a machine of 256: %s", r.output())
	}
	if exit := start(t, m, sandbox.Command{Script: "kill -9 $$"}).wait(); exit.OOM {
		t.Error("a plain SIGKILL is called out of memory")
	}
	// Memory that is files counts as well: each file system holds no more than half
	// of it, so that either of them may be full.
	for _, dir := range []string{"/dev/shm", "/tmp"} {
		out, _ := sh(t, m, "head -c 4000000000 /dev/zero 2>/dev/null > "+dir+"/x || stat -c %s "+dir+"/x; rm "+dir+"/x")
		var size int
		if fmt.Sscan(out, &size); size == 0 || size > 128<<20 {
			t.Errorf("on a machine of 256 MiB and a disk of 128, %s holds a file of %s", dir, out)
		}
	}
	select {
	case <-m.Lost():
		t.Error("filling a memory file system has ended the machine")
	default:
	}
	// Disk: what the machine was given, and no more.
	r = start(t, env.Machines()[1], sandbox.Command{Script: "head -c 200000000 /dev/zero > /srv/x || stat -c %s /srv/x"})
	r.wait()
	var size int
	if fmt.Sscan(r.stdout.String(), &size); size == 0 || size > 128<<20 {
		t.Errorf("a disk of 128 MiB holds a file of %s", r.output())
	}
}

func testCPU(t *testing.T, s *suite) {
	if !s.root {
		t.Skip("an ordinary user's machines have no limits, which is said")
	}
	env := s.sealed(t, 1, sandbox.Policy{})
	if s.opts.Virtual { // whose own clocks prove nothing
		if out := must(t, env.Machines()[0], "nproc"); out != "1\n" {
			t.Errorf("a machine of one CPU has %s", out)
		}
		return
	}
	r := guest(t, env.Machines()[0], "burn", "2000")
	r.wait()
	var cpu, wall int
	if _, err := fmt.Sscan(r.output(), &cpu, &wall); err != nil {
		t.Fatalf("%v: %s", err, r.output())
	}
	// One CPU is a bound that load on the host only lowers; a period's quota may
	// be used up at the beginning and the end.
	if cpu > wall+300 {
		t.Errorf("a machine of one CPU used %d ms of CPU time in %d ms", cpu, wall)
	}
}

func testForkBomb(t *testing.T, s *suite) {
	if !s.root {
		t.Skip("an ordinary user's machines have no limits, which is said")
	}
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	r := guest(t, m, "forks", "40000")
	r.wait()
	if strings.Contains(r.output(), "no limit") {
		t.Errorf("a machine got 40,000 processes: %s", r.output())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if _, err := m.KillUnit(ctx, "test"); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Lost():
		t.Error("a fork bomb has ended the machine")
		return
	default:
	}
	eventually(t, "the machine is of use again", func() bool {
		out, exit := sh(t, m, "echo alive")
		return exit.Code == 0 && out == "alive\n"
	})
}
