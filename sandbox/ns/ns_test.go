package ns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bj/sandbox"
	"bj/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if ok, err := Main(os.Args); ok {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if sandboxtest.Main(os.Args) {
		return
	}
	os.Exit(m.Run())
}

// leased returns a sealed environment with n machines, which is released at the
// end of the test.
func leased(t testing.TB, n int, p sandbox.Policy, edit func(*sandbox.Spec)) sandbox.Environment {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	spec := sandbox.Spec{Owner: "test"}
	v4, v6 := netip.MustParseAddr("198.18.0.10"), netip.MustParseAddr("fd62:6a::10")
	for i := range n {
		spec.Machines = append(spec.Machines, sandbox.MachineSpec{Name: fmt.Sprintf("m-%d", i), CPUs: 1, Memory: 256 << 20, Disk: 64 << 20, V4: v4, V6: v6})
		v4, v6 = v4.Next(), v6.Next()
	}
	if edit != nil {
		edit(&spec)
	}
	provider := New(Options{State: t.TempDir()})
	env, err := provider.Lease(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := env.Seal(ctx, p); err != nil {
		t.Fatal(err)
	}
	return env
}

// sh runs a script on a machine and returns what it wrote, and its exit code.
func sh(t testing.TB, m sandbox.Machine, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out strings.Builder
	p, err := m.Start(ctx, sandbox.Command{Script: script, Unit: "test"}, func(_ sandbox.Stream, b []byte) { out.Write(b) })
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), exit.Code
}

func TestMachineIsEmpty(t *testing.T) {
	env := leased(t, 1, sandbox.Policy{}, nil)
	m := env.Machines()[0]
	for _, c := range []struct{ script, want string }{
		{"hostname; cat /etc/hostname", "m-0\nm-0\n"},
		{"id -u", "0\n"},
		{"ls -A /root /home /tmp /run /var/log", "/home:\n\n/root:\n\n/run:\nlock\n\n/tmp:\n\n/var/log:\n"},
		{"grep -c . /etc/resolv.conf", "2\n"},
		{"grep m-0 /etc/hosts | cut -f1", "198.18.0.10\nfd62:6a::10\n"},
		{"cut -d: -f2 /etc/shadow | sort -u", "*\n"},
		{"ls /etc/ssh | grep host_ || echo none", "none\n"},
		{"touch /etc/x /usr/x /usr/bin/x && ls /etc/x /usr/x /usr/bin/x | wc -l", "3\n"},
	} {
		if out, code := sh(t, m, c.script); out != c.want || code != 0 {
			t.Errorf("%s: exit %d, output %q, want %q", c.script, code, out, c.want)
		}
	}
}

func TestCanariesHold(t *testing.T) {
	env := leased(t, 2, sandbox.Policy{}, nil)
	list, err := env.Canaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		t.Log(c)
		if !c.Held {
			t.Errorf("%s on %s: %s", c.Probe, c.Machine, c.Detail)
		}
	}
	flows, err := env.Blocked(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(flows) > 0 {
		t.Errorf("bj's own canaries are reported: %v", flows)
	}
}

// A machine that takes over an address of its service reaches its ports there,
// and no other ones.
func TestDeclaredAddress(t *testing.T) {
	policy := sandbox.Policy{Internal: []sandbox.Ports{{Protocol: "tcp", First: 8080, Last: 8080}}, Declared: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}
	m := leased(t, 1, policy, nil).Machines()[0]
	for port, want := range map[int]string{8080: "hello\n", 8081: "dark\n"} {
		out, _ := sh(t, m, fmt.Sprintf(`
ip address replace 10.9.9.9/32 dev lo
perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalAddr => "10.9.9.9", LocalPort => %[1]d, Listen => 1, ReuseAddr => 1) or die $!; open F, ">/tmp/up%[1]d"; $c = $s->accept; print $c "hello\n"' &
until test -e /tmp/up%[1]d; do sleep 0.01; done
timeout 2 bash -c 'cat </dev/tcp/10.9.9.9/%[1]d' || echo dark`, port))
		if out != want {
			t.Errorf("port %d: %q, want %q", port, out, want)
		}
	}
}

// What keeps leases from being written is said, with what mends it.
func TestLeasesAreWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	full := t.TempDir()
	if err := syscall.Mount("tmpfs", full, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(full, syscall.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(full, "all"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, hint := range map[string]string{
		full:            "the disk of leases is full: df -h " + full,
		"/proc/self/bj": "the folder of leases must be writable: /proc/self/bj",
	} {
		err := sandbox.Try(t.Context(), New(Options{State: dir}), sandbox.Policy{})
		if e := sandbox.AsError(err, ""); err == nil || e.Code != sandbox.CodeLease || e.Hint != hint {
			t.Errorf("%s: %v, hint %q", dir, err, e.Hint)
		}
	}
	if left, err := os.ReadDir(full); err != nil || len(left) != 1 {
		t.Errorf("%v, %v is left", left, err)
	}
}

func TestWhyLost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.oom_control")
	g := &guest{events: file, env: &environment{spec: sandbox.Spec{Machines: []sandbox.MachineSpec{{Memory: 64 << 20}}}}}
	for _, c := range []struct{ text, want string }{
		{"oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", ""},
		{"oom_kill_disable 0\nunder_oom 1\noom_kill 3\n", "it ran out of its 64 MiB of memory"},
		{"low 0\nhigh 0\nmax 21\noom 1\noom_kill 1\noom_group_kill 0\n", "the kernel ended 1 of its processes"},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := g.Why(); !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%q says %q, want %q", c.text, got, c.want)
		}
	}
	if g := (&guest{}); g.Why() != "" {
		t.Error("without a limit, the limit is why")
	}
}
