package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	govirt "github.com/digitalocean/go-libvirt"
)

// KVM is what is known of it on this host. That there is a device says little:
// what counts is whether a machine has run on it.
type KVM struct {
	State KVMState
	Why   string // what was seen, where it does not work
}

// A KVMState says what became of a machine on KVM.
type KVMState string

const (
	KVMUnknown KVMState = ""        // none was booted, or that failed for a reason that is not KVM's
	KVMWorks   KVMState = "works"   // it ran
	KVMAbsent  KVMState = "absent"  // there is no device
	KVMRefused KVMState = "refused" // it was refused, or stopped: so it stays until the host restarts
	KVMLate    KVMState = "late"    // it was not there in time: KVM hangs, or the host was busy
)

// LateFor is how long nobody tries again after a machine on KVM that was late: a
// host may be less busy then.
const LateFor = 10 * time.Minute

// probeDeadline bounds the boot that tells whether KVM works: with it, a
// machine is there in a second.
const probeDeadline = 20 * time.Second

// kvmDevice is how programs get at it.
const kvmDevice = "/dev/kvm"

// errLate says that a machine on KVM was not there in time.
var errLate = fmt.Errorf("it did not come up within %s", probeDeadline)

// refusal is why KVM runs no machine.
type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }

// accelerated reports whether machines run on KVM. Where that is not known, it
// boots one to see.
func (e *environment) accelerated(ctx context.Context, probe plan) (bool, error) {
	probe.kvm, probe.network, probe.index = true, false, 999
	return e.provider.accelerated(ctx, func(ctx context.Context) error { return e.probe(ctx, probe) })
}

func (p *Provider) accelerated(ctx context.Context, boot func(context.Context) error) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kvm != nil {
		return p.kvm.State == KVMWorks, nil
	}
	k := p.readKVM()
	if k.State == KVMUnknown {
		err := boot(ctx)
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		k = judge(err)
		if err := p.keepKVM(k); err != nil {
			return false, err
		}
	}
	switch k.State {
	case KVMAbsent:
		p.opts.Notice(k.Why + ": machines are emulated, which is slow")
	case KVMRefused:
		p.opts.Notice("KVM refused a machine: machines are emulated, which is slow: " + k.Why)
	case KVMLate:
		p.opts.Notice("a machine was booted on KVM, and " + k.Why + ": for now machines are emulated, which is slow")
	case KVMUnknown:
		p.opts.Notice("no machine could be booted to see whether KVM works: machines are emulated, which is slow: " + k.Why)
	}
	p.kvm = &k
	return k.State == KVMWorks, nil
}

// judge says what the end of a machine's boot on KVM tells of it.
func judge(err error) KVM {
	var refused refusal
	switch {
	case err == nil:
		return KVM{State: KVMWorks}
	case errors.As(err, &refused):
		return KVM{State: KVMRefused, Why: err.Error()}
	case errors.Is(err, errLate):
		return KVM{State: KVMLate, Why: err.Error()}
	}
	return KVM{Why: err.Error()}
}

// kvmFile keeps what a machine on KVM has shown, until the host restarts.
func (p *Provider) kvmFile() string { return filepath.Join(p.opts.State, "kvm") }

func (p *Provider) keepKVM(k KVM) error {
	if k.State == KVMUnknown {
		return nil
	}
	if err := os.WriteFile(p.kvmFile(), []byte(string(k.State)+"\n"+k.Why), 0o644); err != nil {
		return fmt.Errorf("noting whether KVM works: %w", err)
	}
	return nil
}

// readKVM returns what can be known without booting a machine.
func (p *Provider) readKVM() KVM {
	if _, err := os.Stat(p.device); err != nil {
		return KVM{State: KVMAbsent, Why: "there is no " + p.device}
	}
	data, err := os.ReadFile(p.kvmFile())
	if err != nil {
		return KVM{}
	}
	state, why, _ := strings.Cut(string(data), "\n")
	switch k := (KVM{KVMState(state), strings.TrimSpace(why)}); k.State {
	case KVMWorks, KVMRefused:
		return k
	case KVMLate:
		if fi, err := os.Stat(p.kvmFile()); err == nil && time.Since(fi.ModTime()) < LateFor {
			return k
		}
	}
	return KVM{}
}

// KVM says whether machines run on it, as far as that is known before one is
// leased.
func (p *Provider) KVM() KVM {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kvm != nil {
		return *p.kvm
	}
	return p.readKVM()
}

// ForgetKVM makes the next lease boot a machine on KVM again, where the last one
// did not run: something may have been mended since.
func (p *Provider) ForgetKVM() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kvm = nil
	if s := p.readKVM().State; s != KVMRefused && s != KVMLate {
		return nil
	}
	if err := os.Remove(p.kvmFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forgetting whether KVM works: %w", err)
	}
	return nil
}

// kvmRefuses matches what QEMU and libvirt say where it is KVM that fails, and
// not a path that is called so; kvmBusy what may be better in a while.
var (
	kvmRefuses = regexp.MustCompile(`(?i)/dev/kvm|(^|[^/\w.-])kvm([^/\w.-]|_|$)`)
	kvmBusy    = regexp.MustCompile(`(?i)resource busy|cannot allocate memory`)
)

func refuses(text string) bool { return kvmRefuses.MatchString(text) && !kvmBusy.MatchString(text) }

// probe boots a machine until it greets. Its error is a refusal, errLate, or
// says nothing of KVM.
func (e *environment) probe(ctx context.Context, m plan) error {
	text, err := m.xml()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeDeadline, errLate)
	defer cancel()
	var d govirt.Domain
	err = e.ask(ctx, "creating the domain", func() (err error) {
		d, err = e.libvirt.DomainCreateXML(text, govirt.DomainStartAutodestroy)
		return err
	})
	if err != nil {
		if ctx.Err() == nil && refuses(err.Error()) {
			return refusal{err}
		}
		return err
	}
	defer destroy(e.libvirt, d)
	conn, err := dialPort(ctx, m.port(controlPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	other, err := dialPort(ctx, m.port(agentPort))
	if err != nil {
		return err
	}
	defer other.Close()
	if _, err = newControl(ctx, m.name, conn); err == nil {
		return nil
	}
	// What QEMU gives up stands still, or is gone; what is slow runs.
	var state int32
	serr := e.ask(context.WithoutCancel(ctx), "asking what became of the machine", func() (err error) {
		state, _, err = e.libvirt.DomainGetState(d, 0)
		return err
	})
	switch {
	case serr != nil && !govirt.IsNotFound(serr):
		return err
	case serr != nil:
		return refusal{errors.New("the machine ended before it had booted")}
	case govirt.DomainState(state) != govirt.DomainRunning:
		return refusal{errors.New("the machine was stopped before it had booted")}
	}
	return err
}
