package agent

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// roleVar makes the test binary something else: the guest, or a program that a
// command in the guest runs.
const roleVar = "AGENT_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "guest":
		if err := guestMain(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
	default:
		helpers[role]()
	}
}

// guestMain is the first process of a test's machine.
func guestMain() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting proc: %w", err)
	}
	if err := network(); err != nil {
		return fmt.Errorf("making a network: %w", err)
	}
	f := os.NewFile(3, "conn")
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	f.Close()
	ctx := context.Background()
	if d, err := time.ParseDuration(os.Getenv("AGENT_TEST_WITHIN")); err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	return Serve(ctx, conn, Options{
		CgroupRoot: os.Getenv("AGENT_TEST_CGROUP"),
		OOMEvents:  os.Getenv("AGENT_TEST_OOM"),
	})
}

// A machine is a guest in namespaces of its own.
type machine struct {
	*Client
	guest  *exec.Cmd
	stderr *bytes.Buffer
}

// cgroup is the folder that the guest was given, or empty.
func (m *machine) cgroup() string {
	for _, e := range m.guest.Env {
		if dir, ok := strings.CutPrefix(e, "AGENT_TEST_CGROUP="); ok {
			return dir
		}
	}
	return ""
}

// variants are the machines that every test of behaviour runs on.
func variants(t *testing.T, f func(t *testing.T, m *machine)) {
	t.Helper()
	t.Run("cgroups", func(t *testing.T) { f(t, newMachine(t, true)) })
	t.Run("marks", func(t *testing.T) { f(t, newMachine(t, false)) })
}

// newMachine starts a guest; with cgroups, if the host lets it, as root of 65536
// ids, else as an ordinary user would, with one id.
func newMachine(t testing.TB, cgroups bool) *machine {
	t.Helper()
	if cgroups {
		return newMachineFrom(t, func(t testing.TB, g *exec.Cmd) {
			g.Env = append(g.Env, "AGENT_TEST_CGROUP="+testCgroup(t))
			manyIDs(g, os.Getuid())
		})
	}
	return newMachineFrom(t, func(testing.TB, *exec.Cmd) {})
}

// manyIDs maps 65536 ids, root to host.
func manyIDs(g *exec.Cmd, host int) {
	g.SysProcAttr.GidMappingsEnableSetgroups = true
	g.SysProcAttr.Credential = &syscall.Credential{}
	g.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: host, Size: 65536}}
	g.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: host, Size: 65536}}
}

// hidden executes the guest from a file that the machine's root may not read
// and whose owner it has no id for.
func hidden(t testing.TB, g *exec.Cmd) {
	manyIDs(g, 1_000_000)
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { f.Close() })
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	if _, err := f.ReadFrom(exe); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o111); err != nil {
		t.Fatal(err)
	}
	// A file that is open for writing cannot be executed.
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ro.Close() })
	f.Close()
	g.Path = fmt.Sprintf("/proc/self/fd/%d", ro.Fd())
}

// newMachineFrom starts a guest that configure has changed.
func newMachineFrom(t testing.TB, configure func(testing.TB, *exec.Cmd)) *machine {
	t.Helper()
	m := &machine{stderr: &bytes.Buffer{}}
	m.guest = exec.Command("/proc/self/exe")
	m.guest.Env = []string{roleVar + "=guest", "AGENT_TEST_OOM=" + os.Getenv("AGENT_TEST_OOM")}
	m.guest.Stderr = m.stderr
	m.guest.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS |
			syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:   syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	configure(t, m.guest)

	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	m.guest.ExtraFiles = []*os.File{theirs}
	err = m.guest.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		t.Skipf("starting a machine: %v", err)
	}
	t.Cleanup(func() {
		m.guest.Process.Kill()
		m.guest.Wait()
		if t.Failed() && m.stderr.Len() > 0 {
			t.Logf("guest: %s", m.stderr)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if m.Client, err = NewClient(ctx, conn); err != nil {
		m.guest.Wait()
		t.Fatalf("%v: %s", err, m.stderr)
	}
	t.Cleanup(func() { m.conn.Close() })
	return m
}

// testCgroup makes a cgroup2 folder, removed after the machine.
func testCgroup(t testing.TB) string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") || len(f) < 5 {
			continue
		}
		dir, err := os.MkdirTemp(f[4], "bj-agent-test-")
		if err != nil {
			t.Skipf("no cgroup2 folder can be made: %v", err)
		}
		t.Cleanup(func() {
			eventually(t, "removing the cgroup", func() bool {
				return removeCgroup(dir) == nil
			})
		})
		return dir
	}
	t.Skip("no cgroup2 file system")
	return ""
}

func removeCgroup(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	return unix.Rmdir(dir)
}

// eventually polls until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// testContext bounds one test's waits.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A transcript collects output.
type transcript struct {
	mu  sync.Mutex
	out map[sandbox.Stream]*bytes.Buffer
}

func newTranscript() *transcript {
	return &transcript{out: map[sandbox.Stream]*bytes.Buffer{sandbox.Stdout: {}, sandbox.Stderr: {}}}
}

func (tr *transcript) write(s sandbox.Stream, b []byte) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.out[s].Write(b)
}

func (tr *transcript) String(s sandbox.Stream) string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.out[s].String()
}

// run runs a command to its end.
func (m *machine) run(t *testing.T, c sandbox.Command) (stdout, stderr string, e sandbox.Exit) {
	t.Helper()
	tr := newTranscript()
	p, err := m.Start(testContext(t), c, tr.write)
	if err != nil {
		t.Fatalf("starting %q: %v", c.Script, err)
	}
	if e, err = p.Wait(testContext(t)); err != nil {
		t.Fatalf("waiting for %q: %v", c.Script, err)
	}
	return tr.String(sandbox.Stdout), tr.String(sandbox.Stderr), e
}

// script runs a script that must succeed, and returns its output.
func (m *machine) script(t *testing.T, s string) string {
	t.Helper()
	out, errs, e := m.run(t, sandbox.Command{Script: s, Unit: "test"})
	if e.Code != 0 {
		t.Fatalf("%q: %+v\n%s%s", s, e, out, errs)
	}
	return out
}

func TestRun(t *testing.T) {
	home := "/root"
	if unix.Access(home, unix.X_OK) != nil {
		home = "/" // the test's machine has the host's files
	}
	variants(t, func(t *testing.T, m *machine) {
		if out := m.script(t, "echo hello; pwd; id -u"); out != "hello\n"+home+"\n0\n" {
			t.Errorf("got %q", out)
		}
		for _, c := range []struct {
			script string
			want   sandbox.Exit
		}{
			{"exit 7", sandbox.Exit{Code: 7}},
			{"false; exit 0", sandbox.Exit{Code: 1}},
			{"kill -TERM $$; sleep 9", sandbox.Exit{Code: 143, Signal: "SIGTERM"}},
			{"sh -c 'kill -KILL $$'", sandbox.Exit{Code: 137}},
		} {
			if _, _, e := m.run(t, sandbox.Command{Script: c.script}); e != c.want {
				t.Errorf("%q: %+v, want %+v", c.script, e, c.want)
			}
		}
		if err := m.Close(testContext(t)); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
}
