package ns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

func TestMain(m *testing.M) {
	if ok, err := Main(os.Args); ok {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
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
	out, code := sh(t, env.Machines()[0], "hostname; id; ls /; cat /etc/hosts /etc/resolv.conf; ls -la /root /home /etc /var; mount; ip a 2>/dev/null; cat /proc/1/cmdline; ls /sys/fs/cgroup; ulimit -a; env; su nobody -s /bin/sh -c id; ps aux")
	t.Log(out, code)
}
