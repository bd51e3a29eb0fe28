// Package libvirt is the provider of virtual machines: ephemeral domains of a
// libvirt on this host, sealed from outside.
//
//	bj ── control ── gateway (hub) ═ tap ═ QEMU ─ machine: agent = first process
//	 ├── libvirt: a transient domain for each machine
//	 └── two virtio-serial channels for each machine: control, agent
//
// The gateway is a process whose network namespace is the hub, the same one as
// under namespaces (package hub). Every machine's only link is a tap that is
// moved into the hub before the machine runs a single instruction, and that is
// down until the seal holds. So what judges a machine's packets is the hub's
// rules on the host, whatever root of the machine does.
//
// A machine boots a kernel directly, with the agent as its first process; it
// learns who it is over the control channel, and acknowledges that before
// anything runs. Disks are read-only and shared, with memory above.
//
// If bj dies, the kernel ends the gateway and so every link; the machines see
// their channels end and power off; and libvirt destroys what bj's connection
// owned. What is left after a kill of libvirtd too carries the lease's name, and
// the next bj removes it.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	govirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/hub"
	"bj/sandbox/image"
)

// Options are the provider's settings.
type Options struct {
	URI    string       // of a libvirt on this host; DefaultURI if empty
	Agent  string       // static program that answers Main's commands, here and in machines
	Images *image.Store // where kernels and roots come from
	State  string       // folder of leases; /run/bj/libvirt if empty
	// Notice takes words for people. Each is said once.
	Notice func(string)
}

// Provider leases virtual machines.
type Provider struct {
	opts Options

	mu     sync.Mutex
	kvm    *KVM   // nil until a lease has asked
	device string // kvmDevice

	// booting has a value for each machine that is being made: more at once than
	// there are processors would all be late.
	booting chan struct{}

	agentOnce sync.Once
	agentSum  string // digest of the agent
	agentErr  error
}

// New returns the provider. It does nothing to the host.
func New(opts Options) *Provider {
	if opts.URI == "" {
		opts.URI = DefaultURI
	}
	if opts.State == "" {
		opts.State = "/run/bj/libvirt"
	}
	if opts.Notice == nil {
		opts.Notice = func(string) {}
	}
	return &Provider{opts: opts, device: kvmDevice, booting: make(chan struct{}, max(2, runtime.NumCPU()))}
}

// Name implements sandbox.Provider.
func (p *Provider) Name() string { return "libvirt" }

// Each thing that a machine's start waits for has a deadline of its own, so that
// the one that is missed is the one that was slow. Emulated machines on a busy
// host take their time: QEMU's own start competes with those that boot already.
const (
	createDeadline = 3 * time.Minute // libvirt, and so QEMU, making or restoring a domain
	bootDeadline   = 3 * time.Minute // a domain that runs, until the machine greets
	becomeDeadline = 3 * time.Minute // its identity and its files
)

// Ready implements sandbox.Provider.
func (p *Provider) Ready(ctx context.Context) error {
	for _, part := range p.Parts(ctx) {
		if part.Err != nil {
			return part.Err
		}
	}
	return nil
}

// checkRights refuses users who cannot have virtual machines.
func checkRights() error {
	if os.Geteuid() != 0 {
		return &sandbox.Error{Code: sandbox.CodeLease, Err: errors.New("virtual machines need root: their links are made in the kernel"), Hint: "run bj as root, or use --sandbox namespace"}
	}
	return nil
}

// Check implements sandbox.Provider.
func (p *Provider) Check(ctx context.Context) error { return sandbox.Try(ctx, p, sandbox.Policy{}) }

// files is the folder of a lease's sockets and consoles.
func (p *Provider) files(lease string) string { return filepath.Join(p.opts.State, "files", lease) }

// Reap implements sandbox.Provider.
func (p *Provider) Reap(ctx context.Context) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, nil // leases of virtual machines are root's
	}
	if err := forgetImages(); err != nil {
		return nil, err
	}
	return hub.Reap(ctx, p.opts.State, func(ctx context.Context, name string, _ hub.Record) error {
		// What libvirt cannot do, or is not there to do, comes to the same: the
		// processes themselves are what counts.
		if l, err := connect(ctx, p.opts.URI); err == nil {
			defer l.Disconnect()
			_ = destroyLease(ctx, l, name)
		}
		endPipes(p.files(name))
		return errors.Join(killEmulators(ctx, name), removeTaps(name), removeOverlays(name), os.RemoveAll(p.files(name)))
	})
}

// destroyLease destroys the domains of a lease.
func destroyLease(ctx context.Context, l *govirt.Libvirt, lease string) error {
	domains, _, err := l.ConnectListAllDomains(1, 0)
	if err != nil {
		return fmt.Errorf("listing domains: %w", err)
	}
	var group errgroup.Group
	for _, d := range domains {
		if strings.HasPrefix(d.Name, lease+"-") {
			group.Go(func() error { return destroy(l, d) })
		}
	}
	return group.Wait()
}

func destroy(l *govirt.Libvirt, d govirt.Domain) error {
	err := l.DomainDestroyFlags(d, govirt.DomainDestroyDefault)
	if err != nil && !govirt.IsNotFound(err) && !strings.Contains(err.Error(), "domain is not running") {
		return fmt.Errorf("destroying %s: %w", d.Name, err)
	}
	return nil
}

// checkSpec refuses what this provider cannot give.
func (p *Provider) checkSpec(spec sandbox.Spec) error {
	if err := checkRights(); err != nil {
		return err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("reading the host's memory: %w", err)
	}
	total := int64(info.Totalram) * int64(info.Unit)
	var sum int64
	if len(spec.Policy.Sockets) > 0 {
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("a virtual machine has a kernel of its own: %s of this host cannot be in it", spec.Policy.Sockets[0].Path), Hint: "run it with --sandbox namespace"}
	}
	for _, m := range spec.Machines {
		sum += m.Memory + overhead
		if !m.V4.Is4() || !m.V6.Is6() {
			return fmt.Errorf("leasing %s: it needs an IPv4 and an IPv6 address", m.Name)
		}
	}
	if sum > total {
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("the machines ask for %d MiB of memory with their kernels, this host has %d", sum>>20, total>>20), Hint: "ask for less memory, or run it on a larger host"}
	}
	return nil
}

// Lease implements sandbox.Provider.
func (p *Provider) Lease(ctx context.Context, spec sandbox.Spec) (sandbox.Environment, error) {
	return p.LeaseFrom(ctx, spec, nil)
}

// LeaseFrom implements sandbox.Templater.
func (p *Provider) LeaseFrom(ctx context.Context, spec sandbox.Spec, from map[string]string) (sandbox.Environment, error) {
	if err := p.checkSpec(spec); err != nil {
		return nil, err
	}
	conn, err := connect(ctx, p.opts.URI)
	if err != nil {
		return nil, err
	}
	e := &environment{provider: p, libvirt: conn, spec: spec, from: from}
	if err := e.start(ctx); err != nil {
		e.Release(context.WithoutCancel(ctx))
		return nil, explain(err)
	}
	return e, nil
}

// explain adds to an error of leasing what mends it.
func explain(err error) error {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return err
	}
	e = &sandbox.Error{Code: sandbox.CodeLease, Err: err}
	text := err.Error()
	switch {
	case errors.Is(err, unix.ENOSPC) || strings.Contains(text, "No space left"):
		e.Hint = "the disk is full: df -h says which; BJ_CACHE names another folder for images"
	case strings.Contains(text, "emulator") || strings.Contains(text, "qemu-system"):
		e.Hint = "apt-get install " + emulatorPackage
	case strings.Contains(text, "root file system of a Linux") || strings.Contains(text, "the disk's /etc/fstab"):
		e.Hint = "disk = names the disk of an installed Linux on ext4, xfs or btrfs, without LVM and encryption, or its root file system"
	}
	return e
}

// start makes everything up to the point where Seal can be called.
func (e *environment) start(ctx context.Context) error {
	p := e.provider
	uid, gid, err := emulatorUser()
	if err != nil {
		return err
	}
	plans := make([]plan, len(e.spec.Machines))
	contents := make([][]sandbox.File, len(plans))
	for i, m := range e.spec.Machines {
		if plans[i], contents[i], err = p.plan(ctx, m); err != nil {
			return err
		}
		plans[i].index, plans[i].uid, plans[i].gid = i, uid, gid
		if !slices.Contains(e.about, plans[i].boot.About) {
			e.about = append(e.about, plans[i].boot.About)
		}
	}
	if err := e.open(plans); err != nil {
		return err
	}
	if len(plans) > 0 {
		kvm, err := e.accelerated(ctx, plans[0])
		if err != nil {
			return err
		}
		e.kvm = kvm
	}
	if err := e.startHub(); err != nil {
		return err
	}

	var req setupRequest
	e.machines = make([]*guestMachine, len(plans))
	group, gctx := errgroup.WithContext(ctx)
	for i, m := range plans {
		m.kvm = e.kvm
		req.Machines = append(req.Machines, linked{m.name, e.spec.Machines[i].V4, e.spec.Machines[i].V6, m.mac(), m.domain()})
		group.Go(func() error {
			select {
			case p.booting <- struct{}{}:
				defer func() { <-p.booting }()
			case <-gctx.Done():
				return context.Cause(gctx)
			}
			boot := e.boot
			if e.from[m.name] != "" {
				boot = e.restore
			}
			g, err := boot(gctx, m)
			if err != nil {
				return fmt.Errorf("starting %s: %w", m.name, err)
			}
			e.machines[i] = g
			return nil
		})
	}
	err = group.Wait()
	if err == nil {
		ctx, cancel := within(ctx, replyDeadline, "preparing the hub")
		_, err = e.Peer.Call(ctx, "setup", req, nil)
		cancel()
	}
	if err != nil {
		if s := e.gateway.stderr.String(); s != "" {
			return fmt.Errorf("%w: %s", err, s)
		}
		return err
	}
	ctx, cancel := within(ctx, becomeDeadline, "getting ready")
	defer cancel()
	group, gctx = errgroup.WithContext(ctx)
	for i, g := range e.machines {
		group.Go(func() error {
			if err := g.become(gctx, e.spec, plans[i], contents[i]); err != nil {
				return fmt.Errorf("starting %s: %w", g.name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, g := range e.machines {
		e.Agents = append(e.Agents, g.client)
		e.Inner = append(e.Inner, g.control)
	}
	if !e.spec.Deadline.IsZero() {
		e.expire = time.AfterFunc(time.Until(e.spec.Deadline), func() { e.Release(context.Background()) })
	}
	return nil
}

// plan says how a machine is made, and which files it is given when it runs.
func (p *Provider) plan(ctx context.Context, m sandbox.MachineSpec) (plan, []sandbox.File, error) {
	made := plan{name: m.Name, cpus: m.CPUs, memory: m.Memory, network: true}
	var contents []sandbox.File
	var err error
	if made.boot, err = p.opts.Images.Boot(ctx, m.Image, p.opts.Agent, p.opts.Notice); err != nil {
		return made, nil, fmt.Errorf("making what %s boots: %w", m.Name, err)
	}
	for _, path := range []*string{&made.boot.Kernel, &made.boot.Initramfs, &made.boot.Disk.Path} {
		if *path, err = reachable(*path); err != nil {
			return made, nil, err
		}
	}
	for _, f := range m.Files {
		switch {
		case f.Tree:
			disk, err := p.opts.Images.Layer(ctx, f.Source, p.opts.Notice)
			if err == nil {
				disk, err = reachable(disk)
			}
			if err != nil {
				return made, nil, fmt.Errorf("making a disk of %s: %w", f.Source, err)
			}
			made.layers = append(made.layers, disk)
		case f.Source != "":
			data, err := os.ReadFile(f.Source)
			if err != nil {
				return made, nil, fmt.Errorf("staging %s: %w", f.Path, err)
			}
			f.Content, f.Source = data, ""
			contents = append(contents, f)
		default:
			contents = append(contents, f)
		}
	}
	return made, contents, nil
}

// open makes the lease and its folder.
func (e *environment) open(plans []plan) (err error) {
	p := e.provider
	e.lease, _, err = hub.NewLease(p.opts.State, hub.Record{Owner: e.spec.Owner, PID: os.Getpid(), Since: time.Now().UTC()}, nil)
	if err != nil {
		return err
	}
	folder := p.files(e.lease.Name)
	if err := os.MkdirAll(folder, 0o711); err != nil {
		return fmt.Errorf("making the folder of the lease: %w", err)
	}
	for i := range plans {
		plans[i].folder = folder
		plans[i].lease = metadata{Name: e.lease.Name, State: p.opts.State, Owner: e.spec.Owner}
	}
	return nil
}

// startHub starts the gateway.
func (e *environment) startHub() error {
	gw, conn, err := startGateway(e.provider.opts.Agent, e.lease.File)
	if err != nil {
		return err
	}
	e.gateway = gw
	e.Client = hub.NewClient(e.spec, conn)
	go func() {
		e.Run()
		select {
		case <-e.Lost():
			// Its machines have lost their links already, and are of no use.
			ctx, cancel := context.WithTimeout(context.Background(), releaseDeadline)
			defer cancel()
			_ = killEmulators(ctx, e.lease.Name) // Release looks again
		default: // it is being released
		}
	}()
	return nil
}

// boot makes a machine and lets it run until it waits to be told who it is.
func (e *environment) boot(ctx context.Context, m plan) (*guestMachine, error) {
	text, err := m.xml()
	if err != nil {
		return nil, fmt.Errorf("describing it: %w", err)
	}
	if err := addTap(m.domain()); err != nil {
		return nil, err
	}
	unlink, err := m.makeOverlay()
	if err != nil {
		return nil, err
	}
	// A domain that is created paused has executed nothing.
	err = e.ask(ctx, "creating the domain", func() error {
		_, err := e.libvirt.DomainCreateXML(text, govirt.DomainStartPaused|govirt.DomainStartAutodestroy)
		return err
	})
	if !e.template {
		unlink()
	}
	if err != nil {
		return nil, err
	}
	g, conn, err := e.letRun(ctx, m)
	if err != nil {
		return nil, err
	}
	ctx, cancel := within(ctx, bootDeadline, "booting")
	defer cancel()
	if g.control, err = newControl(ctx, m.name, conn); err != nil {
		conn.Close()
		g.channel.Close()
		if tail := lastLines(m.console()); tail != "" {
			err = fmt.Errorf("%w; its console says: %s", err, tail)
		}
		return nil, err
	}
	return g, nil
}

// letRun lets a machine run that stands still: first its link goes to the hub,
// and its channels are opened. It returns the control channel beside it.
func (e *environment) letRun(ctx context.Context, m plan) (_ *guestMachine, control net.Conn, err error) {
	if m.boot.Systemd && len(e.spec.Policy.Units) > 0 {
		return nil, nil, &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("%s is booted by its systemd, which needs the cgroups by which units are told apart (only=)", m.name), Hint: "leave only= out, or give it an image without systemd"}
	}
	g := &guestMachine{env: e, index: m.index, name: m.name, systemd: m.boot.Systemd, console: m.console()}
	if g.domain, err = e.libvirt.DomainLookupByName(m.domain()); err != nil {
		return nil, nil, fmt.Errorf("finding its domain: %w", err)
	}
	if err := moveTap(m.domain(), e.gateway.cmd.Process.Pid); err != nil {
		return nil, nil, err
	}
	if control, err = dialPort(ctx, m.port(controlPort)); err != nil {
		return nil, nil, fmt.Errorf("opening its channel: %w", err)
	}
	if g.channel, err = dialPort(ctx, m.port(agentPort)); err != nil {
		control.Close()
		return nil, nil, fmt.Errorf("opening its channel: %w", err)
	}
	if err := e.ask(ctx, "letting it run", func() error { return e.libvirt.DomainResume(g.domain) }); err != nil {
		control.Close()
		g.channel.Close()
		return nil, nil, err
	}
	return g, control, nil
}

// ask runs a call of libvirt, which knows no deadline, and does not wait for it
// longer than createDeadline. Release does: what such a call makes is the
// lease's.
func (e *environment) ask(ctx context.Context, what string, call func() error) error {
	ctx, cancel := within(ctx, createDeadline, what)
	defer cancel()
	done := make(chan error, 1)
	e.asking.Go(func() { done <- call() })
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for libvirt: %w", context.Cause(ctx))
	}
}

// within bounds ctx, and says what was not done when it ends by that.
func within(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%s: not within %s", what, d))
}

// lastLines returns the end of a console, for people.
func lastLines(path string) string { return strings.TrimSpace(consoleEnd(path, 600)) }

// panicked returns the last line in which a machine's kernel gave up, by its
// console, "" if there is none.
func panicked(path string) string {
	last := ""
	for line := range strings.Lines(consoleEnd(path, 64<<10)) {
		if _, words, ok := strings.Cut(line, "Kernel panic"); ok {
			last = "its console says: Kernel panic" + strings.TrimRight(words, "\r\n")
		}
	}
	return last
}

// consoleEnd returns the last size bytes of what a machine wrote to its console,
// which may be any amount of anything.
func consoleEnd(path string, size int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	data, _ := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-size), size))
	return strings.ToValidUTF8(string(data), "?")
}

var _ sandbox.Provider = (*Provider)(nil)
