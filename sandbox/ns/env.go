package ns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"bj/sandbox"
	"bj/sandbox/agent"
)

// releaseDeadline bounds how long destroying an environment may take.
const releaseDeadline = 10 * time.Second

// environment is bj's side of a leased environment.
type environment struct {
	provider *Provider
	spec     sandbox.Spec
	lease    *lease
	cgroups  []string
	cmd      *exec.Cmd
	peer     *peer
	machines []*guest
	stderr   limitedBuffer
	expire   *time.Timer

	lost     chan struct{} // closed when the gateway ended without Release
	loseOnce sync.Once
	ended    chan struct{} // closed when the gateway process is gone

	mu       sync.Mutex
	sealed   bool
	policy   sandbox.Policy
	release  sync.Once
	released bool
	relErr   error
}

// start makes everything up to the point where Seal can be called.
func (e *environment) start(ctx context.Context) error {
	shadow, err := shadowFile()
	if err != nil {
		return err
	}
	req := setupRequest{Root: rootConfig{
		Hosts:  hostsFile(e.spec.Machines),
		Resolv: fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1\n", hub4),
		Shadow: shadow,
		Hidden: e.provider.etc,
		Idmap:  e.provider.root,
	}}
	req.IDs = []idRange{{Count: 1}}
	switch {
	case e.provider.root:
		req.IDs = []idRange{{First: idBase(), Count: 65536}}
	case e.provider.ids != nil:
		req.IDs = append(req.IDs, idRange{Inside: 1, First: 1, Count: e.provider.ids.count() - 1})
	}
	var channels []*os.File
	defer func() { closeAll(channels) }()
	var conns []net.Conn
	contents := make([][]sandbox.File, len(e.spec.Machines))
	for i, m := range e.spec.Machines {
		config := machineConfig{Name: m.Name, Index: i, V4: m.V4, V6: m.V6, Disk: m.Disk}
		if config.Cgroups, config.Units, err = e.provider.cg.machine(e.lease.name, m, req.IDs[0].First); err != nil {
			return err
		}
		config.Events = e.provider.cg.oomEvents(e.lease.name, m.Name)
		for _, f := range m.Files {
			switch {
			case f.Tree:
				config.Layers = append(config.Layers, f.Source)
			case f.Source != "" && f.ReadOnly:
				config.Binds = append(config.Binds, bind{Source: f.Source, Path: f.Path})
			case f.Source != "":
				data, err := os.ReadFile(f.Source)
				if err != nil {
					return fmt.Errorf("staging %s: %w", f.Path, err)
				}
				f.Content, f.Source = data, ""
				contents[i] = append(contents[i], f)
			default:
				contents[i] = append(contents[i], f)
			}
		}
		ours, theirs, err := socketpair()
		if err != nil {
			return err
		}
		channels = append(channels, theirs)
		conn, err := unixConn(ours)
		if err != nil {
			return err
		}
		defer func() {
			if e.machines[i].client == nil {
				conn.Close()
			}
		}()
		conns = append(conns, conn)
		e.machines = append(e.machines, &guest{env: e, index: i, name: m.Name})
		req.Machines = append(req.Machines, config)
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	conn, err := unixConn(ours)
	if err != nil {
		return err
	}
	e.peer = newPeer(conn, e.handle)
	if err := e.startGateway(theirs, conn); err != nil {
		conn.Close()
		return err
	}
	theirs.Close()
	go func() {
		e.peer.run(context.Background())
		e.loseOnce.Do(func() { close(e.lost) })
	}()
	if _, err := e.peer.call(ctx, "setup", req, nil, channels...); err != nil {
		if s := e.stderr.String(); s != "" {
			return fmt.Errorf("%w: %s", err, s)
		}
		return err
	}
	closeAll(channels)
	channels = nil
	for i, m := range e.machines {
		if m.client, err = agent.NewClient(ctx, conns[i]); err != nil {
			return fmt.Errorf("waiting for the agent of %s: %w", m.name, err)
		}
		for _, f := range contents[i] {
			if err := m.client.Put(ctx, f); err != nil {
				return fmt.Errorf("staging %s on %s: %w", f.Path, m.name, err)
			}
		}
	}
	if !e.spec.Deadline.IsZero() {
		e.expire = time.AfterFunc(time.Until(e.spec.Deadline), func() { e.Release(context.Background()) })
	}
	return nil
}

// idBase returns the first of 65,536 ids of the host that no account has: a
// range of its own for each environment, far above those of users and below
// 2^31, where signed ids end.
func idBase() uint32 {
	var b [4]byte
	rand.Read(b[:])
	const ranges = 10_000
	return 1<<30 + binary.BigEndian.Uint32(b[:])%ranges*65536
}

// handle answers the gateway's requests: it may dial, and nothing else.
func (e *environment) handle(ctx context.Context, method string, params json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	closeAll(fds)
	if method != "dial" {
		return nil, nil, fmt.Errorf("bj answers no %q", method)
	}
	var r dialRequest
	if err := json.Unmarshal(params, &r); err != nil {
		return nil, nil, fmt.Errorf("decoding a request: %w", err)
	}
	e.mu.Lock()
	allowed := e.sealed && !e.released && allows(e.policy, r.Network, r.To)
	e.mu.Unlock()
	if !allowed || e.spec.Dial == nil {
		return nil, nil, fmt.Errorf("dialling %s %s: no condition allows it", r.Network, r.To)
	}
	conn, err := e.spec.Dial(ctx, r.Network, r.To)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	filer, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, nil, fmt.Errorf("dialling %s %s: the connection has no descriptor", r.Network, r.To)
	}
	f, err := filer.File()
	if err != nil {
		return nil, nil, fmt.Errorf("dialling %s %s: %w", r.Network, r.To, err)
	}
	return nil, []*os.File{f}, nil
}

// allows reports whether some condition opens to: the same question that the
// packet filter and the relay have answered, asked a last time.
func allows(p sandbox.Policy, network string, to netip.AddrPort) bool {
	// Whatever a condition covers, these are the host itself.
	if a := to.Addr(); a.IsLoopback() || a.IsUnspecified() || a.Is4In6() {
		return false
	}
	for _, a := range p.Allows {
		if a.Protocol == network && a.Prefix.Contains(to.Addr()) && (network == "icmp" || a.First <= to.Port() && to.Port() <= a.Last) {
			return true
		}
	}
	return false
}

func (e *environment) Name() string { return e.lease.name }
func (e *environment) Root() string { return rootName() }

func (e *environment) Free() []string {
	return []string{"names: hosts file", "clock: the host's", "entropy: the host's", "kernel: the host's", "programs: " + rootName()}
}

func (e *environment) Machines() []sandbox.Machine {
	ms := make([]sandbox.Machine, len(e.machines))
	for i, m := range e.machines {
		ms[i] = m
	}
	return ms
}

func (e *environment) Seal(ctx context.Context, p sandbox.Policy) error {
	// Narrow what bj itself will dial before the gateway is asked: at no moment
	// is more open than both policies have in common.
	e.mu.Lock()
	first := !e.sealed
	e.policy = p
	e.mu.Unlock()
	if _, err := e.peer.call(ctx, "seal", sealRequest{Policy: p}, nil); err != nil {
		return sandbox.AsError(fmt.Errorf("sealing: %w", err), sandbox.CodeLease)
	}
	if first {
		e.mu.Lock()
		e.sealed = true
		e.mu.Unlock()
	}
	return nil
}

func (e *environment) Blocked(ctx context.Context) ([]sandbox.Flow, error) {
	var a flowsAnswer
	_, err := e.peer.call(ctx, "flows", struct{}{}, &a)
	return a.Blocked, err
}

func (e *environment) Used(ctx context.Context) ([]sandbox.Use, error) {
	var a flowsAnswer
	_, err := e.peer.call(ctx, "flows", struct{}{}, &a)
	return a.Used, err
}

func (e *environment) Rules(ctx context.Context) (string, error) {
	var text string
	_, err := e.peer.call(ctx, "rules", struct{}{}, &text)
	return text, err
}

func (e *environment) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	files, err := e.peer.call(ctx, "dial", dialRequest{Network: network, To: to}, nil)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	if len(files) != 1 {
		return nil, errors.New("dialling in: the gateway sent no connection")
	}
	return net.FileConn(files[0])
}

func (e *environment) Lost() <-chan struct{} { return e.lost }

// Release kills the gateway; the kernel then ends all that lives below it
// before the gateway's end is reported. What remains is removed here.
func (e *environment) Release(ctx context.Context) error {
	e.release.Do(func() {
		e.mu.Lock()
		e.released = true
		e.mu.Unlock()
		e.loseOnce.Do(func() {}) // from here on its end is no loss
		if e.expire != nil {
			e.expire.Stop()
		}
		ctx, cancel := context.WithTimeout(ctx, releaseDeadline)
		defer cancel()
		var errs []error
		if e.cmd != nil && e.cmd.Process != nil {
			if err := e.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, fmt.Errorf("ending the gateway: %w", err))
			}
			select {
			case <-e.ended:
			case <-ctx.Done():
				errs = append(errs, fmt.Errorf("waiting for the gateway to end: %w", ctx.Err()))
			}
		}
		for _, m := range e.machines {
			if m.client != nil {
				// The agent is dead by now: this only closes the stream.
				m.client.Close(ctx)
			}
		}
		if err := removeCgroups(ctx, e.cgroups); err != nil {
			errs = append(errs, err)
		}
		if len(errs) == 0 {
			if err := e.lease.end(); err != nil {
				errs = append(errs, fmt.Errorf("ending the lease: %w", err))
			}
		} else {
			// The record stays, unlocked, for a reaper.
			e.lease.file.Close()
		}
		e.relErr = errors.Join(errs...)
	})
	return e.relErr
}

// guest is one machine: the agent's client, and what only a provider can do.
type guest struct {
	env    *environment
	index  int
	name   string
	client *agent.Client
}

func (g *guest) Name() string          { return g.name }
func (g *guest) Lost() <-chan struct{} { return g.client.Lost() }

func (g *guest) Start(ctx context.Context, c sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	g.env.mu.Lock()
	sealed := g.env.sealed
	g.env.mu.Unlock()
	if !sealed {
		return nil, fmt.Errorf("starting a command on %s: it is not sealed", g.name)
	}
	return g.client.Start(ctx, c, output)
}

func (g *guest) KillUnit(ctx context.Context, unit string) (int, error) {
	return g.client.KillUnit(ctx, unit)
}

func (g *guest) Crash(ctx context.Context) error {
	if _, err := g.env.peer.call(ctx, "crash", machineRequest{Machine: g.index}, nil); err != nil {
		return err
	}
	select {
	case <-g.client.Lost():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to be gone: %w", g.name, ctx.Err())
	}
}

// limitedBuffer keeps the first bytes that a hidden process writes to stderr.
type limitedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := 4096 - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *limitedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.TrimSpace(b.buf.String())
}

var _ sandbox.Environment = (*environment)(nil)
