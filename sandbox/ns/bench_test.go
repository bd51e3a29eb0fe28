package ns

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"bj/sandbox"
)

// BenchmarkLease measures from nothing to the end of the first command in a
// sealed machine, beside bwrap with as many namespaces around the same command.
func BenchmarkLease(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		p := New(Options{State: b.TempDir()})
		spec := sandbox.Spec{Owner: "bench", Machines: []sandbox.MachineSpec{{Name: "m", CPUs: 1, Memory: 256 << 20, Disk: 64 << 20, V4: netip.MustParseAddr("198.18.0.10"), V6: netip.MustParseAddr("fd62:6a::10")}}}
		for b.Loop() {
			if err := leaseAndRun(p, spec, b.StopTimer); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("bwrap", func(b *testing.B) {
		if _, err := exec.LookPath("bwrap"); err != nil {
			b.Fatal("bwrap is not installed: apt-get install bubblewrap")
		}
		for b.Loop() {
			cmd := exec.Command("bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
				"--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
				"--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--tmpfs", "/var", "--tmpfs", "/root", "--tmpfs", "/home", "/bin/true")
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("running bwrap: %v: %s", err, out)
			}
		}
	})
}

func leaseAndRun(p *Provider, spec sandbox.Spec, stop func()) error {
	ctx := context.Background()
	env, err := p.Lease(ctx, spec)
	if err != nil {
		return err
	}
	defer env.Release(ctx)
	if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
		return err
	}
	proc, err := env.Machines()[0].Start(ctx, sandbox.Command{Argv: []string{"/bin/true"}, Unit: "bench"}, func(sandbox.Stream, []byte) {})
	if err != nil {
		return err
	}
	exit, err := proc.Wait(ctx)
	stop()
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("exit code %d", exit.Code)
	}
	return err
}
