package sandboxtest

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

func lifeTests() []test {
	return []test{
		{"release under load", testRelease},
		{"release before the seal", testReleaseEarly},
		{"lease that fails", testFailedLease},
		{"lease that is given up", testAbandonedLease},
		{"deadline", testDeadline},
		{"descriptors are not passed on", testInheritance},
		{"crash", testCrash},
		{"root ends its machine", testSuicide},
		{"gateway is killed", testGatewayDeath},
		{"owner is killed", testOwnerDeath},
		{"owner is killed at any moment", testOwnerDeathAnytime},
		{"reap leaves the living alone", testReapLiving},
	}
}

func testRelease(t *testing.T, s *suite) {
	env := s.sealed(t, 3, open())
	var all []*running
	for _, m := range env.Machines() {
		r := start(t, m, sandbox.Command{Unit: "u", Script: "trap '' TERM INT HUP; (setsid sleep 1000 &); while :; do echo x; sleep 0.001; done"})
		r.await("x")
		l := guest(t, m, "listen", "tcp", fmt.Sprintf("0.0.0.0:%d", openPort))
		l.await("ready")
		must(t, m, "mkdir -p /mnt/t && mount -t tmpfs t /mnt/t; unshare -n true; true")
		all = append(all, r, l)
	}
	s.release(t, env)
	s.release(t, env) // once more is allowed
	for _, r := range all {
		closed(t, "the end of a command on a released machine", r.proc.Done())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := env.Machines()[0].Start(ctx, sandbox.Command{Script: "true", Unit: "x"}, func(sandbox.Stream, []byte) {}); err == nil {
		t.Error("a command was started on a machine that was released")
	}
	select {
	case <-env.Lost():
		t.Error("a release counts as a loss")
	default:
	}
}

func testReleaseEarly(t *testing.T, s *suite) {
	s.lease(t, s.spec(2)) // released by its cleanup, which looks for leftovers
}

func testFailedLease(t *testing.T, s *suite) {
	for _, c := range []struct {
		name string
		edit func(*sandbox.Spec)
	}{
		{"a source that is not there", func(spec *sandbox.Spec) {
			spec.Machines[1].Files = append(spec.Machines[1].Files, sandbox.File{Path: "/srv/x", Mode: 0o644, Source: "/no/such/file"})
		}},
		{"a read-only source that is not there", func(spec *sandbox.Spec) {
			spec.Machines[1].Files = append(spec.Machines[1].Files, sandbox.File{Path: "/srv/x", Mode: 0o644, Source: "/no/such/file", ReadOnly: true})
		}},
		{"a tree that is not there", func(spec *sandbox.Spec) {
			spec.Machines[1].Files = append(spec.Machines[1].Files, sandbox.File{Path: "/", Source: "/no/such/tree", Tree: true})
		}},
		{"a file over a folder", func(spec *sandbox.Spec) {
			spec.Machines[1].Files = append(spec.Machines[1].Files, sandbox.File{Path: "/usr", Mode: 0o644, Content: []byte("x")})
		}},
		{"more memory than there is", func(spec *sandbox.Spec) { spec.Machines[0].Memory = 1 << 50 }},
		{"no address", func(spec *sandbox.Spec) { spec.Machines[1].V4 = netip.Addr{} }},
		{"the same address twice", func(spec *sandbox.Spec) { spec.Machines[1].V4 = spec.Machines[0].V4 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := Snapshot()
			p := s.newProvider(t)
			spec := s.spec(2)
			c.edit(&spec)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			env, err := p.Lease(ctx, spec)
			if err == nil {
				err = env.Seal(ctx, sandbox.Policy{})
				s.release(t, env)
			}
			if err == nil {
				t.Error("the lease was given and sealed")
			} else if ctx.Err() != nil {
				t.Errorf("it took longer than %s: %v", patience, err)
			} else {
				t.Log(err)
			}
			s.checkLeftovers(t, p, before)
		})
	}
}

func testAbandonedLease(t *testing.T, s *suite) {
	before := Snapshot()
	p := s.newProvider(t)
	for i := range 12 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i*4)*time.Millisecond)
		if env, err := p.Lease(ctx, s.spec(2)); err == nil {
			s.release(t, env)
		}
		cancel()
	}
	s.checkLeftovers(t, p, before)
}

func testDeadline(t *testing.T, s *suite) {
	spec := s.spec(1)
	begin := time.Now()
	spec.Deadline = begin.Add(time.Second)
	if s.opts.Virtual { // as long as it takes to have one
		spec.Deadline = begin.Add(patience / 2)
	}
	env := s.lease(t, spec)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
		closed(t, "the end of a lease whose deadline has passed: "+err.Error(), env.Lost())
		return // it was over already
	}
	p, err := env.Machines()[0].Start(ctx, sandbox.Command{Script: "sleep 1000", Unit: "x"}, func(sandbox.Stream, []byte) {})
	if err != nil {
		return // it was over already
	}
	closed(t, "the end of a lease whose deadline has passed", p.Done())
	closed(t, "the loss of its machine", env.Machines()[0].Lost())
}

// testInheritance: what this process was born with, or opened carelessly, is
// no business of what it starts.
func testInheritance(t *testing.T, s *suite) {
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", pipe[0]))
	if err != nil {
		t.Fatal(err)
	}
	s.sealed(t, 1, sandbox.Policy{})
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	seen := 0
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || strings.HasPrefix(fd, fmt.Sprintf("/proc/%d/", os.Getpid())) {
			continue
		}
		if seen++; target == link {
			args, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "cmdline"))
			t.Errorf("%s, of %q, is a pipe of this process", fd, args)
		}
	}
	if s.root && seen == 0 {
		t.Error("no descriptor of any process was seen")
	}
}

func testCrash(t *testing.T, s *suite) {
	env := s.sealed(t, 2, open())
	a, b := env.Machines()[0], env.Machines()[1]
	v4, v6 := machineAddrs(1)
	listener := guest(t, b, "listen", "tcp", fmt.Sprintf("%s:%d", v4, openPort), fmt.Sprintf("[%s]:%d", v6, openPort))
	listener.await("ready")
	hold := guest(t, a, "hold", "tcp", fmt.Sprintf("%s:%d", v4, openPort))
	hold.await("holding")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	closed(t, "the loss of a crashed machine", b.Lost())
	closed(t, "the end of its command", listener.proc.Done())
	if _, err := listener.proc.Wait(ctx); err == nil {
		t.Error("a command that ended with its machine has an exit")
	}
	// A power failure says nothing: no reset, no unreachable.
	hold.wait()
	if out := hold.output(); !strings.Contains(out, "cut: silent") {
		t.Errorf("the peer of a crashed machine saw %q", out)
	}
	for _, addr := range []string{fmt.Sprintf("%s:%d", v4, openPort), fmt.Sprintf("[%s]:%d", v6, openPort)} {
		r := guest(t, a, "connect", "tcp", addr, "500")
		r.wait()
		if out := r.output(); out != "silent\n" {
			t.Errorf("connecting to a crashed machine: %s", out)
		}
	}
	must(t, a, "true")
	select {
	case <-env.Lost():
		t.Error("the crash of a machine is no loss of its environment")
	case <-a.Lost():
		t.Error("the other machine is lost as well")
	default:
	}
	if _, err := b.Start(ctx, sandbox.Command{Script: "true", Unit: "x"}, func(sandbox.Stream, []byte) {}); err == nil {
		t.Error("a command was started on a crashed machine")
	}
	if _, err := env.Canaries(ctx); err != nil {
		t.Errorf("canaries after a crash: %v", err)
	}
}

func testSuicide(t *testing.T, s *suite) {
	env := s.sealed(t, 2, sandbox.Policy{})
	a, b := env.Machines()[0], env.Machines()[1]
	// Whatever root in a machine does to all others, the agent is out of reach.
	sh(t, a, "kill -9 1; kill -TERM 1; kill -STOP 1; kill -SEGV 1; true")
	r := start(t, a, sandbox.Command{Script: "trap '' TERM; kill -9 -1; true"})
	r.wait()
	must(t, a, "true")
	must(t, b, "true")
	// It may shut its machine down, which then is lost; nothing else is.
	r = start(t, a, sandbox.Command{Script: "reboot -f 2>&1; halt -f 2>&1; true"})
	closed(t, "the end of a command that shuts its machine down", r.proc.Done())
	must(t, b, "true")
	select {
	case <-env.Lost():
		t.Error("root of a machine has ended the environment")
	default:
	}
}

func testGatewayDeath(t *testing.T, s *suite) {
	if s.opts.Kill == nil {
		t.Skip("this provider has nothing that could be killed")
	}
	before := Snapshot()
	p := s.newProvider(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	env, err := p.Lease(ctx, s.spec(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.release(t, env) })
	s.seal(t, env, open())
	v4, _ := machineAddrs(0)
	l := guest(t, env.Machines()[0], "listen", "tcp", fmt.Sprintf("%s:%d", v4, openPort))
	l.await("ready")
	hold := guest(t, env.Machines()[1], "hold", "tcp", fmt.Sprintf("%s:%d", v4, openPort))
	hold.await("holding")
	s.opts.Kill(t, env)
	closed(t, "the loss of an environment whose gateway was killed", env.Lost())
	for _, m := range env.Machines() {
		closed(t, "the loss of its machine", m.Lost())
	}
	closed(t, "the end of a command", hold.proc.Done())
	if err := env.Seal(ctx, sandbox.Policy{}); err == nil {
		t.Error("a lost environment was sealed")
	}
	if _, err := env.Canaries(ctx); err == nil {
		t.Error("canaries hold in a lost environment")
	}
	s.release(t, env)
	s.checkLeftovers(t, p, before, env.Name())
}

// ownerEnv is set in a process that leases and is killed: "once" or "ever".
const ownerEnv = "BJ_SANDBOXTEST_OWNER"

// StateEnv names the folder that a provider of the tests must keep its leases
// in, where it is set.
const StateEnv = "BJ_SANDBOXTEST_STATE"

// own is what the owner does until it is killed.
func (s *suite) own(t *testing.T) {
	p := s.newProvider(t)
	s.tool = os.Getenv("BJ_SANDBOXTEST_TOOL")
	for {
		env, err := p.Lease(context.Background(), s.spec(2))
		if err != nil {
			fmt.Println("owner: leasing:", err)
			os.Exit(1)
		}
		fmt.Println("owner: leased", env.Name())
		if err := env.Seal(context.Background(), open()); err != nil {
			fmt.Println("owner: sealing:", err)
			os.Exit(1)
		}
		for _, m := range env.Machines() {
			for _, script := range []string{"sleep 1000", "(setsid sleep 1000 &); exit 0"} {
				if _, err := m.Start(context.Background(), sandbox.Command{Script: script, Unit: "u"}, func(sandbox.Stream, []byte) {}); err != nil {
					fmt.Println("owner: starting:", err)
					os.Exit(1)
				}
			}
		}
		fmt.Println("owner: up", env.Name())
		if os.Getenv(ownerEnv) == "once" {
			select {}
		}
		env.Release(context.Background())
	}
}

// owner starts an owner, waits until it has written the text so many times,
// kills it, and returns the names of its leases.
func (s *suite) owner(t *testing.T, state, mode, until string, times int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+strings.ReplaceAll(strings.Join(strings.Split(t.Name(), "/")[:2], "$/^"), " ", "_")+"$")
	cmd.Env = append(os.Environ(), ownerEnv+"="+mode, StateEnv+"="+state, "BJ_SANDBOXTEST_TOOL="+s.tool)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var names []string
	last := ""
	lines := bufio.NewScanner(out)
	for times > 0 && lines.Scan() {
		last = lines.Text()
		if name, ok := strings.CutPrefix(lines.Text(), "owner: leased "); ok {
			names = append(names, name)
		}
		if strings.HasPrefix(lines.Text(), until) {
			times--
		}
	}
	cmd.Process.Signal(unix.SIGKILL)
	cmd.Wait()
	if times > 0 {
		t.Fatalf("the owner ended by itself: %s", last)
	}
	return names
}

// gone waits until nothing that runs, links or mounts is left, which the kernel
// sees to, and then reaps.
func (s *suite) gone(t *testing.T, before Host, state string, names []string) {
	t.Helper()
	eventually(t, "all that could be reached is gone", func() bool {
		for _, left := range before.diff(Snapshot(), nil) {
			if !strings.HasPrefix(left, "cgroup ") {
				return false
			}
		}
		return true
	})
	t.Setenv(StateEnv, state)
	p := s.newProvider(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	removed, err := p.Reap(ctx)
	if err != nil {
		t.Fatalf("reaping: %v", err)
	}
	if len(names) > 0 && !strings.Contains(strings.Join(removed, " "), names[len(names)-1]) {
		t.Errorf("reaping removed %q, and not %s", removed, names[len(names)-1])
	}
	s.checkLeftovers(t, p, before, names...)
	if removed, err = p.Reap(ctx); err != nil || len(removed) > 0 {
		t.Errorf("reaping once more: %q %v", removed, err)
	}
}

// stateDir returns a folder whose path is short enough for sockets in it.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "state")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func testOwnerDeath(t *testing.T, s *suite) {
	before := Snapshot()
	state := stateDir(t)
	names := s.owner(t, state, "once", "owner: up", 1)
	s.gone(t, before, state, names)
}

func testOwnerDeathAnytime(t *testing.T, s *suite) {
	// Killed between one line and the next: while it leases, seals, releases.
	n := 6
	if s.opts.Virtual {
		n = 2
	}
	for i := range n {
		before := Snapshot()
		state := stateDir(t)
		until := []string{"owner: leased", "owner: up"}[i%2]
		s.owner(t, state, "ever", until, 1+i)
		s.gone(t, before, state, nil)
	}
}

func testReapLiving(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	r := start(t, env.Machines()[0], sandbox.Command{Script: "echo up; sleep 1000"})
	r.await("up")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	removed, err := s.newProvider(t).Reap(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, name := range removed {
		if name == env.Name() {
			t.Errorf("a living lease was reaped")
		}
	}
	must(t, env.Machines()[0], "true")
}
