package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is kept of a machine on KVM: that it ran and that it was refused until
// the host restarts, that it was late for a while, all else for this process.
func TestKVMIsKept(t *testing.T) {
	denied := refusal{errors.New("creating the domain: Could not access KVM kernel module: Permission denied")}
	for _, c := range []struct {
		name         string
		err          error
		state        KVMState
		notice       string
		kept, longer bool // known to the next process, and after a while
	}{
		{"works", nil, KVMWorks, "", true, true},
		{"refused", denied, KVMRefused, "KVM refused a machine: machines are emulated, which is slow: creating the domain: Could not access KVM kernel module: Permission denied", true, true},
		{"late", errLate, KVMLate, "a machine was booted on KVM, and it did not come up within 20s: for now machines are emulated, which is slow", true, false},
		{"another fault", errors.New("creating the domain: No space left on device"), KVMUnknown, "no machine could be booted to see whether KVM works: machines are emulated, which is slow: creating the domain: No space left on device", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := t.TempDir()
			var said []string
			open := func() *Provider {
				p := New(Options{State: state, Notice: func(s string) { said = append(said, s) }})
				p.device = os.DevNull // a device that is there
				return p
			}
			p, booted := open(), 0
			boot := func(context.Context) error { booted++; return c.err }
			for range 2 {
				if works, err := p.accelerated(t.Context(), boot); err != nil || works != (c.state == KVMWorks) {
					t.Errorf("works: %v, %v", works, err)
				}
			}
			if booted != 1 {
				t.Errorf("one process has booted %d machines to see", booted)
			}
			if got := p.KVM(); got.State != c.state || (c.err == nil) != (got.Why == "") {
				t.Errorf("afterwards KVM is %+v", got)
			}
			if got := strings.Join(said, "\n"); got != c.notice {
				t.Errorf("said %q, want %q", got, c.notice)
			}
			if got := open().KVM(); (got.State == c.state) != (c.kept || c.state == KVMUnknown) {
				t.Errorf("the next process takes KVM for %+v", got)
			}
			if c.kept {
				old := time.Now().Add(-LateFor - time.Second)
				if err := os.Chtimes(filepath.Join(state, "kvm"), old, old); err != nil {
					t.Fatal(err)
				}
				if got := open().KVM(); (got.State == c.state) != c.longer {
					t.Errorf("a while later KVM is taken for %+v", got)
				}
			}
			p = open()
			if err := p.ForgetKVM(); err != nil {
				t.Fatal(err)
			}
			if got := p.KVM().State; (got == KVMUnknown) != (c.err != nil) {
				t.Errorf("after it was forgotten KVM is %q", got)
			}
		})
	}
}

// A device that is not there needs no machine to be seen, and is missed for as
// long as it is not there, whatever an earlier machine has shown.
func TestKVMIsAbsent(t *testing.T) {
	p := New(Options{State: t.TempDir()})
	p.device = filepath.Join(t.TempDir(), "kvm")
	if err := p.keepKVM(KVM{State: KVMWorks}); err != nil {
		t.Fatal(err)
	}
	works, err := p.accelerated(t.Context(), func(context.Context) error { t.Error("a machine was booted"); return nil })
	if want := (KVM{KVMAbsent, "there is no " + p.device}); works || err != nil || p.KVM() != want {
		t.Errorf("works: %v, %v; KVM is %+v", works, err, p.KVM())
	}
	if err := os.WriteFile(p.device, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	next := New(Options{State: p.opts.State})
	if next.device = p.device; next.KVM().State != KVMWorks {
		t.Errorf("with its device KVM is %+v", next.KVM())
	}
}

// An interrupted probe says nothing.
func TestKVMInterrupted(t *testing.T) {
	p := New(Options{State: t.TempDir()})
	p.device = os.DevNull
	ctx, cancel := context.WithCancel(t.Context())
	_, err := p.accelerated(ctx, func(context.Context) error { cancel(); return errLate })
	if !errors.Is(err, context.Canceled) || p.KVM().State != KVMUnknown {
		t.Errorf("%v; KVM is %+v", err, p.KVM())
	}
}

// Words of QEMU and libvirt that are KVM's fault, and some that are not.
func TestKVMRefuses(t *testing.T) {
	for text, want := range map[string]bool{
		"Could not access KVM kernel module: Permission denied":                      true,
		"qemu-system-x86_64: failed to initialize kvm: Permission denied":            true,
		"ioctl(KVM_CREATE_VM) failed: 22 Invalid argument":                           true,
		"Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'":    true,
		"unable to open /dev/kvm: Permission denied":                                 true,
		"ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy":                    false,
		"kvm_init_vcpu: kvm_get_vcpu failed (0): Cannot allocate memory":             false,
		"Could not open '/srv/kvm/root.img': No such file or directory":              false,
		"cannot set up guest memory 'pc.ram': Cannot allocate memory":                false,
		"Could not open '/srv/kvm-images/root.img': No space left on device or kvm-": false,
	} {
		if got := refuses(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
