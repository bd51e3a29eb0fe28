package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	govirt "github.com/digitalocean/go-libvirt"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// releaseDeadline bounds how long destroying an environment may take.
const releaseDeadline = 30 * time.Second

// environment is bj's side of a leased environment.
type environment struct {
	*hub.Client
	provider *Provider
	libvirt  *govirt.Libvirt
	spec     sandbox.Spec
	from     map[string]string // templates of machines, by name
	lease    *hub.Lease
	gateway  *gateway
	machines []*guestMachine
	expire   *time.Timer
	asking   sync.WaitGroup // calls of libvirt that may make something
	kvm      bool
	about    []string // what the machines boot
	template bool     // QEMU will save it, and open its overlay by its name once more

	release sync.Once
	relErr  error
}

func (e *environment) Name() string { return e.lease.Name }

// Root implements sandbox.Environment.
func (e *environment) Root() string {
	how := "emulated"
	if e.kvm {
		how = "KVM"
	}
	return "virtual machine (" + how + "): " + strings.Join(e.about, "; ")
}

// Free implements sandbox.Environment.
func (e *environment) Free() []string {
	return []string{"names: hosts file", "clock: the host's", "entropy: the host's", "programs: " + strings.Join(e.about, "; ")}
}

// Machines implements sandbox.Environment.
func (e *environment) Machines() []sandbox.Machine {
	ms := make([]sandbox.Machine, len(e.machines))
	for i, m := range e.machines {
		ms[i] = m
	}
	return ms
}

// Seal implements sandbox.Environment. Machines that boot their own systemd do so
// under the first one, and are there when it returns.
func (e *environment) Seal(ctx context.Context, p sandbox.Policy) error {
	first := !e.Sealed()
	if err := e.Client.Seal(ctx, p); err != nil || !first {
		return err
	}
	return e.startInits(ctx)
}

// Release ends the gateway, and with it every link, and then destroys the
// machines.
func (e *environment) Release(ctx context.Context) error {
	e.release.Do(func() {
		if e.Client != nil {
			e.End() // from here on its end is no loss
		}
		if e.expire != nil {
			e.expire.Stop()
		}
		defer e.libvirt.Disconnect()
		if e.lease == nil {
			return // nothing was made
		}
		ctx, cancel := context.WithTimeout(ctx, releaseDeadline)
		defer cancel()
		var errs []error
		if e.gateway != nil {
			errs = append(errs, e.gateway.kill(ctx))
		}
		// What libvirt says of its end does not matter as long as it is gone:
		// libvirtd may have been killed meanwhile.
		destroyed := destroyLease(ctx, e.libvirt, e.lease.Name)
		errs = append(errs, killEmulators(ctx, e.lease.Name))
		if !ended(ctx, &e.asking) {
			errs = append(errs, errors.New("libvirt is still making a machine"))
		}
		errs = append(errs, killEmulators(ctx, e.lease.Name)) // what was made meanwhile
		if destroyed != nil {
			if l, err := connect(ctx, e.provider.opts.URI); err == nil {
				destroyed = destroyLease(ctx, l, e.lease.Name)
				l.Disconnect()
			} else {
				destroyed = nil // nobody is left to know of it
			}
		}
		errs = append(errs, destroyed)
		for _, m := range e.machines {
			if m == nil {
				continue
			}
			// The agent is dead by now: this only closes the streams.
			if m.client != nil {
				m.client.Close(ctx)
			}
			if m.control != nil {
				m.control.conn.Close()
			}
		}
		errs = append(errs, removeTaps(e.lease.Name), removeOverlays(e.lease.Name), os.RemoveAll(e.provider.files(e.lease.Name)))
		if e.relErr = errors.Join(errs...); e.relErr != nil {
			// The record stays, unlocked, for a reaper.
			e.lease.File.Close()
			return
		}
		if err := e.lease.End(); err != nil {
			e.relErr = fmt.Errorf("ending the lease: %w", err)
		}
	})
	return e.relErr
}

// ended waits for all calls, and reports false if that takes too long.
func ended(ctx context.Context, calls *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() { calls.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// guestMachine is one machine: its channels, and its domain.
type guestMachine struct {
	env     *environment
	index   int
	name    string
	domain  govirt.Domain
	control *control
	channel net.Conn // the agent's
	client  *agent.Client
	systemd bool   // its root is booted by its systemd
	console string // path
}

func (g *guestMachine) Name() string          { return g.name }
func (g *guestMachine) Lost() <-chan struct{} { return g.client.Lost() }
func (g *guestMachine) Why() string           { return panicked(g.console) }

// Start implements sandbox.Machine.
func (g *guestMachine) Start(ctx context.Context, c sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	if !g.env.Sealed() {
		return nil, fmt.Errorf("starting a command on %s: it is not sealed", g.name)
	}
	return g.client.Start(ctx, c, output)
}

// KillUnit implements sandbox.Machine.
func (g *guestMachine) KillUnit(ctx context.Context, unit string) (int, error) {
	return g.client.KillUnit(ctx, unit)
}

// Crash implements sandbox.Machine: the link goes first, then the machine.
func (g *guestMachine) Crash(ctx context.Context) error {
	if _, err := g.env.Peer.Call(ctx, "crash", hub.MachineRequest{Machine: g.index}, nil); err != nil {
		return err
	}
	if err := destroy(g.env.libvirt, g.domain); err != nil {
		return err
	}
	select {
	case <-g.client.Lost():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to be gone: %w", g.name, ctx.Err())
	}
}

var _ sandbox.Environment = (*environment)(nil)
