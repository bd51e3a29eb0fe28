package gate

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// PortNames is where the gate answers questions about names, on the hub's own
// addresses.
const PortNames = 53

// Bounds of what machines may ask. Each name that is asked for tells the server
// something, so that there is an end to them.
const (
	askTimeout   = 5 * time.Second
	askAgain     = 500 * time.Millisecond // until the next server is asked as well
	maxAsking    = 128                    // questions under way
	maxRate      = 200                    // questions a second of a machine
	maxBurst     = 400
	maxNames     = 4096 // names that a machine may ask for, of those allowed
	maxLearned   = 8192 // addresses of which the name is remembered
	maxDNSStream = 16 << 10
)

// Question is one that was left unanswered.
type Question struct {
	Machine  string
	Unit     string // of Config.Units; empty if of none
	Name     string // empty if it was no plain question
	From, To netip.AddrPort
	At       time.Time
}

// names is the gate's memory, which outlives an epoch.
type names struct {
	wire    wire
	replies []*net.UDPConn // from the hub's addresses at PortNames; by family

	mu      sync.Mutex
	asking  map[asked]bool
	rates   map[string]*rate
	seen    map[string]map[string]bool // machine → names that were let through
	learned map[learnt]lesson
}

// asked tells repetitions of a question from others.
type asked struct {
	from netip.AddrPort
	q    question
}

type learnt struct {
	machine string
	addr    netip.Addr
}

type lesson struct {
	name string
	at   time.Time
}

// rate is a bucket of questions.
type rate struct {
	left float64
	at   time.Time
}

func newNames() *names {
	return &names{wire: library{}, asking: map[asked]bool{}, rates: map[string]*rate{}, seen: map[string]map[string]bool{}, learned: map[learnt]lesson{}}
}

// take reports whether a machine may ask once more now.
func (n *names) take(machine string, now time.Time) bool {
	r := n.rates[machine]
	if r == nil {
		r = &rate{left: maxBurst, at: now}
		n.rates[machine] = r
	}
	r.left = min(maxBurst, r.left+now.Sub(r.at).Seconds()*maxRate)
	r.at = now
	if r.left < 1 {
		return false
	}
	r.left--
	return true
}

// count reports whether a name is one of the first maxNames of a machine.
func (n *names) count(machine, name string) bool {
	of := n.seen[machine]
	if of == nil {
		of = map[string]bool{}
		n.seen[machine] = of
	}
	if !of[name] && len(of) >= maxNames {
		return false
	}
	of[name] = true
	return true
}

// learn remembers which name led a machine to addresses.
func (n *names) learn(machine, name string, addrs []netip.Addr, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		k := learnt{machine, a}
		if _, ok := n.learned[k]; !ok && len(n.learned) >= maxLearned {
			return
		}
		n.learned[k] = lesson{name, now}
	}
}

// covers reports whether a pattern of Names covers a name in lower case.
func covers(pattern, name string) bool {
	if pattern == "*" {
		return true
	}
	if below, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(name, below) && len(name) > len(below)
	}
	return name == pattern
}

// findNames returns what lets a unit of a machine ask for a name: of several the most
// specific that has a server, then the first.
func findNames(list []sandbox.Names, machine, unit, name string) *sandbox.Names {
	var best *sandbox.Names
	for i := range list {
		n := &list[i]
		if machine == "" || len(n.Servers) == 0 || !covers(n.Pattern, name) || !sandbox.Among(n.Machines, machine) || !sandbox.Among(n.Units, unit) {
			continue
		}
		if best == nil || specific(n.Pattern) > specific(best.Pattern) {
			best = n
		}
	}
	return best
}

func specific(pattern string) int {
	if strings.HasPrefix(pattern, "*") {
		return len(pattern)
	}
	return 1000
}

// listenNames makes the sockets that answers are sent from. Questions come
// through the transparent socket, so that there is no socket whose absence the
// kernel would tell of.
func (r *Relay) listenNames(ctx context.Context) error {
	for _, a := range r.Own {
		network := "udp4"
		if a.Is6() {
			network = "udp6"
		}
		err := inside(r.NetNS, func() error {
			lc := net.ListenConfig{Control: transparent}
			l, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(a, PortNames).String())
			if err != nil {
				return err
			}
			r.asked.replies = append(r.asked.replies, l.(*net.UDPConn))
			return nil
		})
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// forGate reports whether a datagram is a question to the gate.
func (r *Relay) forGate(to netip.AddrPort) bool {
	return to.Port() == PortNames && slices.Contains(r.Own, to.Addr())
}

// question answers one question of a unit, or leaves it unanswered.
func (r *Relay) question(p pair, unit string, b []byte) {
	now := time.Now()
	machine := r.names[p.from.Addr()]
	if machine == "" {
		return
	}
	q, err := r.asked.wire.readQuestion(b)
	silent := func() {
		if r.Unanswered != nil {
			r.Unanswered(Question{Machine: machine, Unit: unit, Name: q.name, From: p.from, To: p.to, At: now})
		}
	}
	if err != nil {
		q = question{}
		silent()
		return
	}
	r.mu.Lock()
	e := r.epoch
	if e == nil {
		r.mu.Unlock()
		return
	}
	allowed := findNames(e.names, machine, unit, q.name)
	if allowed == nil || q.kind != kindA && q.kind != kindAAAA {
		r.mu.Unlock()
		silent()
		return
	}
	n := r.asked
	key := asked{p.from, q}
	n.mu.Lock()
	again := n.asking[key]
	ok := !again && len(n.asking) < maxAsking && n.take(machine, now) && n.count(machine, q.name)
	if ok {
		n.asking[key] = true
	}
	n.mu.Unlock()
	if !ok {
		r.mu.Unlock()
		if !again {
			silent()
		}
		return
	}
	r.count(allowed.Condition, 1, int64(len(b)))
	r.wg.Add(1)
	r.mu.Unlock()
	go func() {
		defer r.wg.Done()
		defer func() {
			n.mu.Lock()
			delete(n.asking, key)
			n.mu.Unlock()
		}()
		got, err := r.resolve(e.ctx, allowed.Servers, q)
		if err != nil || e.ctx.Err() != nil {
			return // as silent as who was asked
		}
		n.learn(machine, q.name, got.addrs, time.Now())
		out, err := n.wire.answer(q, got)
		if err != nil {
			return
		}
		for _, c := range n.replies {
			if addrPort(c.LocalAddr()) == p.to {
				if _, err := c.WriteToUDPAddrPort(out, p.from); err == nil {
					r.mu.Lock()
					r.count(allowed.Condition, 0, int64(len(out)))
					r.mu.Unlock()
				}
			}
		}
	}()
}

// resolve asks servers: the first, and the next ones beside it while nothing has
// come. One that is silent may have lost the question, and is asked again.
func (r *Relay) resolve(ctx context.Context, servers []sandbox.Server, q question) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	type outcome struct {
		reply reply
		err   error
	}
	tries := max(4, len(servers))
	done := make(chan outcome, tries)
	ask := func(s sandbox.Server) {
		r.wg.Go(func() {
			got, err := r.askOne(ctx, s, q)
			if err == nil && got.cut && s.Network == "udp" {
				// What did not fit is asked for again, where the policy has a way.
				for _, t := range servers {
					if t.Network != "tcp" || t.Addr != s.Addr {
						continue
					}
					if more, err := r.askOne(ctx, t, q); err == nil {
						got = more
					}
				}
			}
			done <- outcome{got, err}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := errors.New("no server answers")
	var worst *reply
	started, ended := 0, 0
	for {
		select {
		case <-ctx.Done():
			if worst != nil {
				return *worst, nil
			}
			return reply{}, last
		case <-timer.C:
			if started < tries {
				ask(servers[started%len(servers)])
				started++
				timer.Reset(askAgain)
			}
		case o := <-done:
			ended++
			switch {
			case o.err != nil:
				last = o.err
				if started < tries {
					timer.Reset(askAgain / 10)
				}
			case o.reply.code == codeOK || o.reply.code == codeNoName:
				return o.reply, nil
			default:
				worst = &o.reply
				if started < len(servers) {
					timer.Reset(0)
				} else if ended >= len(servers) {
					return *worst, nil
				}
			}
			if ended == tries {
				if worst != nil {
					return *worst, nil
				}
				return reply{}, last
			}
		}
	}
}

// askOne asks one server once, with a number of the gate's own.
func (r *Relay) askOne(ctx context.Context, s sandbox.Server, q question) (reply, error) {
	c, err := r.dial(ctx, s.Network, s.Addr)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return exchange(c, s.Network, r.asked.wire, q)
}

// exchange asks q over a connection, with a number of its own.
func exchange(c net.Conn, network string, w wire, q question) (reply, error) {
	var id [2]byte
	rand.Read(id[:])
	q.id = binary.BigEndian.Uint16(id[:])
	out, err := w.ask(q)
	if err != nil {
		return reply{}, err
	}
	if network == "tcp" {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	if _, err := c.Write(out); err != nil {
		return reply{}, err
	}
	if network == "tcp" {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return reply{}, err
		}
		n := binary.BigEndian.Uint16(size[:])
		if n > maxDNSStream {
			return reply{}, errors.New("the reply is too long")
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return reply{}, err
		}
		return w.readReply(q, b)
	}
	b := make([]byte, maxDatagram)
	for range 16 { // what answers another question is not waited for for ever
		n, err := c.Read(b)
		if err != nil {
			return reply{}, err
		}
		if got, err := w.readReply(q, b[:n]); err == nil {
			return got, nil
		}
	}
	return reply{}, errors.New("the server answers other questions")
}

// Asked returns the name whose answer led a machine to an address, or "".
func (r *Relay) Asked(machine string, a netip.Addr) string {
	r.asked.mu.Lock()
	defer r.asked.mu.Unlock()
	return r.asked.learned[learnt{machine, a.Unmap()}].name
}

// Lookup asks servers for the addresses of a name, IPv4 first, as the gate does.
// Dial is as in Config.
func Lookup(ctx context.Context, dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error), servers []sandbox.Server, name string) ([]netip.Addr, error) {
	if len(servers) == 0 {
		return nil, errors.New("there is no server to ask")
	}
	r := &Relay{Config: Config{Dial: dial, DialTimeout: askTimeout}, asked: newNames()}
	defer r.wg.Wait()
	var all []netip.Addr
	for _, kind := range []uint16{kindA, kindAAAA} {
		got, err := r.resolve(ctx, servers, question{name: strings.ToLower(strings.TrimSuffix(name, ".")), kind: kind})
		switch {
		case err != nil:
			return nil, err
		case got.code == codeNoName:
			return nil, errors.New("there is no such name")
		case got.code != codeOK:
			return nil, errors.New("the server failed")
		}
		all = append(all, got.addrs...)
	}
	if len(all) == 0 {
		return nil, errors.New("it has no address")
	}
	return all, nil
}
