package libvirt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	govirt "github.com/digitalocean/go-libvirt"
)

// accelerated reports whether machines run on KVM: whether one has, since a
// device that is there may not work. The answer holds until the host reboots.
func (e *environment) accelerated(ctx context.Context, probe plan) (bool, error) {
	p := e.provider
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kvm != nil {
		return *p.kvm, nil
	}
	say := func(works bool) bool {
		if !works {
			p.opts.Notice("KVM does not work here (a machine was booted to see): machines are emulated, which is slow")
		}
		p.kvm = &works
		return works
	}
	if works, known := p.Accelerated(); known {
		return say(works), nil
	}
	works := false
	if _, err := os.Stat("/dev/kvm"); err == nil {
		probe.kvm, probe.network, probe.index = true, false, 999
		ctx, cancel := context.WithTimeout(ctx, probeDeadline)
		works = e.probe(ctx, probe) == nil
		cancel()
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	answer := "broken\n"
	if works {
		answer = "works\n"
	}
	if err := os.WriteFile(p.kvmFile(), []byte(answer), 0o644); err != nil {
		return false, fmt.Errorf("noting whether KVM works: %w", err)
	}
	return say(works), nil
}

// kvmFile keeps what a probe has found out.
func (p *Provider) kvmFile() string { return filepath.Join(p.opts.State, "kvm") }

// Accelerated reports whether machines run on KVM; known is false until one was
// leased on this host since it started.
func (p *Provider) Accelerated() (works, known bool) {
	data, err := os.ReadFile(p.kvmFile())
	return strings.TrimSpace(string(data)) == "works", err == nil
}

func (e *environment) probe(ctx context.Context, m plan) error {
	text, err := m.xml()
	if err != nil {
		return err
	}
	var d govirt.Domain
	err = e.ask(ctx, "creating the domain", func() (err error) {
		d, err = e.libvirt.DomainCreateXML(text, govirt.DomainStartAutodestroy)
		return err
	})
	if err != nil {
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
	_, err = newControl(ctx, m.name, conn)
	return err
}
