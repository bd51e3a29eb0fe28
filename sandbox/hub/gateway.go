package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
)

// Machine is one machine at the hub, as its gateway has it.
type Machine struct {
	Name   string
	Index  int
	V4, V6 netip.Addr
	MAC    net.HardwareAddr // HardwareAddr of its lease
	// NetNS is its network namespace. Nil for a virtual machine, whose kernel is
	// its own: it hangs on the hub by the tap named Tap.
	NetNS *os.File
	Tap   string
	// Cgroup is the folder below which its units have theirs, and CgroupAt where
	// that is in the cgroup namespace. Empty where there is none.
	Cgroup, CgroupAt string
	// Ended is closed when the machine is gone. Nil where only bj can tell.
	Ended <-chan struct{}
	// Kill ends it at once. Nil where that is bj's to do.
	Kill func() error
}

// gone reports whether the machine has crashed or ended.
func (m *Machine) gone() bool {
	select {
	case <-m.Ended:
		return true
	default:
		return false
	}
}

// Gateway is the process whose network namespace is the hub of an environment.
// It can reach nothing outside but by asking bj to dial, and when it ends, the
// kernel removes the hub, its links and its rules.
type Gateway struct {
	peer     *Peer
	setup    func(ctx context.Context, g *Gateway, params json.RawMessage, fds []*os.File) error
	canaries canaries

	mu       sync.Mutex
	hub      *Net
	machines []*Machine
	seal     *sealer
}

// NewGateway returns a gateway that serves bj on conn. Setup answers the first
// request: it makes the machines, and calls Adopt.
func NewGateway(conn *net.UnixConn, setup func(ctx context.Context, g *Gateway, params json.RawMessage, fds []*os.File) error) *Gateway {
	g := &Gateway{setup: setup}
	g.peer = NewPeer(conn, g.handle)
	return g
}

// Run serves until the channel ends, and returns why.
func (g *Gateway) Run(ctx context.Context) error { return g.peer.Run(ctx) }

// Adopt makes hub and machines, which are attached to it, those of the
// environment. It can be called once.
func (g *Gateway) Adopt(hub *Net, machines []*Machine) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hub != nil {
		return errors.New("setting up: done already")
	}
	g.hub, g.machines = hub, machines
	return nil
}

func (g *Gateway) handle(ctx context.Context, method string, params json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	if method != "setup" {
		defer CloseAll(fds)
	}
	switch method {
	case "setup":
		return nil, nil, g.setup(ctx, g, params, fds)
	case "seal":
		return call(params, func(r sealRequest) (any, error) { return nil, needs(g.applySeal(ctx, r.Policy)) })
	case "expect":
		return call(params, func(r expectRequest) (any, error) { g.canaries.expect(r.Canaries); return nil, nil })
	case "flows":
		return call(params, func(struct{}) (any, error) { return g.flows() })
	case "rules":
		return call(params, func(struct{}) (any, error) { return g.rules() })
	case "witness":
		return call(params, func(struct{}) (any, error) { return g.witness() })
	case "crash":
		return call(params, func(r MachineRequest) (any, error) { return nil, g.crash(ctx, r.Machine) })
	case "dial":
		var r dialRequest
		if err := json.Unmarshal(params, &r); err != nil {
			return nil, nil, err
		}
		f, err := g.dialIn(ctx, r)
		if err != nil {
			return nil, nil, err
		}
		return nil, []*os.File{f}, nil
	}
	return nil, nil, fmt.Errorf("the gateway knows no %q", method)
}

// call decodes the parameters of a request and answers it.
func call[P any](params json.RawMessage, f func(P) (any, error)) (any, []*os.File, error) {
	var p P
	if err := json.Unmarshal(params, &p); err != nil {
		return nil, nil, fmt.Errorf("decoding a request: %w", err)
	}
	result, err := f(p)
	return result, nil, err
}

func (g *Gateway) crash(ctx context.Context, index int) error {
	g.mu.Lock()
	if index < 0 || index >= len(g.machines) {
		g.mu.Unlock()
		return fmt.Errorf("crashing machine %d: there is none", index)
	}
	m, hub := g.machines[index], g.hub
	g.mu.Unlock()
	// The link first: a kernel that ends processes says farewell for them, and a
	// machine without power does not.
	if err := hub.cut(m.Index); err != nil {
		return fmt.Errorf("cutting %s off: %w", m.Name, err)
	}
	if m.Kill == nil {
		return nil
	}
	if err := m.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("crashing %s: %w", m.Name, err)
	}
	select {
	case <-m.Ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("crashing %s: %w", m.Name, ctx.Err())
	}
}

func (g *Gateway) witness() (witnessAnswer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hub == nil {
		return witnessAnswer{}, errors.New("reading the witness: nothing is set up")
	}
	n, err := g.hub.leaked()
	return witnessAnswer{Leaked: n}, err
}

// dialIn connects from the hub to a machine.
func (g *Gateway) dialIn(ctx context.Context, r dialRequest) (*os.File, error) {
	source := Addr4
	if r.To.Addr().Is6() {
		source = Addr6
	}
	d := net.Dialer{}
	switch r.Network {
	case "tcp":
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	case "udp":
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	default:
		return nil, fmt.Errorf("dialling %s: a supplier answers tcp and udp only", r.Network)
	}
	c, err := d.DialContext(ctx, r.Network, r.To.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(interface{ File() (*os.File, error) }).File()
}

// dialOut asks bj for a connection to the outside.
func (g *Gateway) dialOut(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	files, err := g.peer.Call(ctx, "dial", dialRequest{Network: network, To: to}, nil)
	if err != nil {
		return nil, err
	}
	defer CloseAll(files)
	if len(files) != 1 {
		return nil, errors.New("dialling out: bj sent no connection")
	}
	return net.FileConn(files[0])
}
