package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"bj/sandbox"
	"bj/sandbox/agent"
)

// Client is bj's side of an environment, as far as that is the same for every
// provider: those embed it. Its fields are set before the first call.
type Client struct {
	Spec   sandbox.Spec
	Peer   *Peer
	Agents []*agent.Client // by machine
	// Inner are the seals that machines with a kernel of their own apply
	// themselves; empty where the gateway does that.
	Inner []Inner

	lost     chan struct{}
	loseOnce sync.Once

	mu       sync.Mutex
	sealed   bool
	released bool
	policy   sandbox.Policy
	tried    []*agent.Tried // by machine, what was heard last
}

// Inner is a machine's own seal, for what stays inside of it. A machine that is
// gone answers with an error of kind ErrGone.
type Inner interface {
	Seal(ctx context.Context, p sandbox.Policy) error
	Expect(ctx context.Context, canaries []CanaryKey) error
	Flows(ctx context.Context) (Flows, error)
	Rules(ctx context.Context) (string, error)
}

// ErrGone is of a machine that has crashed or ended.
var ErrGone = errors.New("the machine is gone")

// NewClient takes over conn, the channel to the gateway.
func NewClient(spec sandbox.Spec, conn *net.UnixConn) *Client {
	e := &Client{Spec: spec, lost: make(chan struct{})}
	e.Peer = NewPeer(conn, e.handle)
	return e
}

// Run serves the gateway until it is gone, which is a loss unless End was
// called before.
func (e *Client) Run() {
	e.Peer.Run(context.Background())
	e.Lose()
}

// Lose says that the environment has died.
func (e *Client) Lose() { e.loseOnce.Do(func() { close(e.lost) }) }

// End says that the environment is being released: nothing is dialled any more,
// and its end is no loss.
func (e *Client) End() {
	e.mu.Lock()
	e.released = true
	e.mu.Unlock()
	e.loseOnce.Do(func() {})
}

// Sealed reports whether Seal has returned without an error.
func (e *Client) Sealed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sealed
}

// Lost implements sandbox.Environment.
func (e *Client) Lost() <-chan struct{} { return e.lost }

// handle answers the gateway's requests: it may dial, and nothing else.
func (e *Client) handle(ctx context.Context, method string, params json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	CloseAll(fds)
	if method != "dial" {
		return nil, nil, fmt.Errorf("bj answers no %q", method)
	}
	var r dialRequest
	if err := json.Unmarshal(params, &r); err != nil {
		return nil, nil, fmt.Errorf("decoding a request: %w", err)
	}
	e.mu.Lock()
	open := e.policy.Narrowed(e.names())
	allowed := e.sealed && !e.released && (allows(open, r.Network, r.To) || asks(open, r.Network, r.To))
	e.mu.Unlock()
	if !allowed || e.Spec.Dial == nil {
		return nil, nil, fmt.Errorf("dialling %s %s: no condition allows it", r.Network, r.To)
	}
	conn, err := e.Spec.Dial(ctx, r.Network, r.To)
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

func (e *Client) names() []string {
	var all []string
	for _, m := range e.Spec.Machines {
		all = append(all, m.Name)
	}
	return all
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

// asks reports whether to is a server that some condition lets the gate ask. It
// may be on the host's own loopback, as a host's resolver is.
func asks(p sandbox.Policy, network string, to netip.AddrPort) bool {
	return slices.ContainsFunc(p.Names, func(n sandbox.Names) bool {
		return slices.Contains(n.Servers, sandbox.Server{Network: network, Addr: to})
	})
}

// Seal implements sandbox.Environment.
func (e *Client) Seal(ctx context.Context, p sandbox.Policy) error {
	// Narrow what bj itself will dial before the gateway is asked: at no moment
	// is more open than both policies have in common.
	e.mu.Lock()
	first := !e.sealed
	e.policy = p
	e.mu.Unlock()
	for i, in := range e.Inner {
		if err := in.Seal(ctx, p); err != nil && !(errors.Is(err, ErrGone) && !first) {
			return sandbox.AsError(fmt.Errorf("sealing %s: %w", e.Spec.Machines[i].Name, err), sandbox.CodeLease)
		}
	}
	if _, err := e.Peer.Call(ctx, "seal", sealRequest{Policy: p}, nil); err != nil {
		return sandbox.AsError(fmt.Errorf("sealing: %w", err), sandbox.CodeLease)
	}
	if first {
		e.mu.Lock()
		e.sealed = true
		e.mu.Unlock()
	}
	return nil
}

// Blocked implements sandbox.Environment.
func (e *Client) Blocked(ctx context.Context) ([]sandbox.Flow, error) {
	a, err := e.flows(ctx)
	if err != nil {
		return nil, err
	}
	flows := a.Blocked
	var names []string
	var addresses [][]netip.Addr
	var heard []*agent.Tried
	for i, m := range e.Spec.Machines {
		t := e.hear(ctx, i)
		if t != nil {
			flows = agent.Attribute(m.Name, flows, t.Attempts)
		}
		names, addresses, heard = append(names, m.Name), append(addresses, []netip.Addr{m.V4, m.V6}), append(heard, t)
	}
	agent.Idle(flows, names, addresses, heard)
	return flows, nil
}

// triedDeadline bounds how long a machine is asked what its programs tried: who
// it was is good to know, and nothing to wait long for.
const triedDeadline = 5 * time.Second

// hear asks the i-th machine what its programs tried to reach; nil if that is
// not known. One that has crashed says no more: it is what was heard last.
func (e *Client) hear(ctx context.Context, i int) *agent.Tried {
	if i >= len(e.Agents) || e.Agents[i] == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, triedDeadline)
	defer cancel()
	tried, err := e.Agents[i].Tried(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.tried == nil {
		e.tried = make([]*agent.Tried, len(e.Spec.Machines))
	}
	if err == nil {
		e.tried[i] = &tried
	}
	return e.tried[i]
}

// Used implements sandbox.Environment.
func (e *Client) Used(ctx context.Context) ([]sandbox.Use, error) {
	a, err := e.flows(ctx)
	return a.Used, err
}

// flows asks the gateway, and the machines that have a seal of their own.
func (e *Client) flows(ctx context.Context) (Flows, error) {
	var all Flows
	if _, err := e.Peer.Call(ctx, "flows", struct{}{}, &all); err != nil {
		return all, err
	}
	for _, in := range e.Inner {
		a, err := in.Flows(ctx)
		if errors.Is(err, ErrGone) {
			continue // what it has seen went with it
		}
		if err != nil {
			return all, err
		}
		all.Blocked = append(all.Blocked, a.Blocked...)
		all.Seen = append(all.Seen, a.Seen...)
		all.Used = AddUses(all.Used, a.Used)
	}
	slices.SortStableFunc(all.Blocked, func(a, b sandbox.Flow) int { return a.First.Compare(b.First) })
	return all, nil
}

// addUses adds to what conditions were used.
// AddUses returns the sum of both, by condition.
func AddUses(sum, more []sandbox.Use) []sandbox.Use {
	for _, u := range more {
		i := slices.IndexFunc(sum, func(v sandbox.Use) bool { return v.Condition == u.Condition })
		if i < 0 {
			sum = append(sum, u)
			continue
		}
		sum[i].Count += u.Count
		sum[i].Bytes += u.Bytes
	}
	return sum
}

func (e *Client) expect(ctx context.Context, r expectRequest) error {
	if _, err := e.Peer.Call(ctx, "expect", r, nil); err != nil {
		return err
	}
	for _, in := range e.Inner {
		if err := in.Expect(ctx, r.Canaries); err != nil && !errors.Is(err, ErrGone) {
			return err
		}
	}
	return nil
}

// Rules implements sandbox.Environment.
func (e *Client) Rules(ctx context.Context) (string, error) {
	var text string
	if _, err := e.Peer.Call(ctx, "rules", struct{}{}, &text); err != nil {
		return "", err
	}
	for i, in := range e.Inner {
		rules, err := in.Rules(ctx)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf("\n# %s\n\n%s", e.Spec.Machines[i].Name, rules)
	}
	return text, nil
}

// Dial implements sandbox.Environment.
func (e *Client) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	files, err := e.Peer.Call(ctx, "dial", dialRequest{Network: network, To: to}, nil)
	if err != nil {
		return nil, err
	}
	defer CloseAll(files)
	if len(files) != 1 {
		return nil, errors.New("dialling in: the gateway sent no connection")
	}
	return net.FileConn(files[0])
}
