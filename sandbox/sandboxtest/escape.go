package sandboxtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

func escapeTests(user string) []test {
	tests := []test{{"witnesses see what arrives", testWitnesses}}
	for _, a := range attacks() {
		tests = append(tests, test{a.name, func(t *testing.T, s *suite) { s.assault(t, a.name, user) }})
	}
	for _, a := range kernelAttacks() {
		tests = append(tests, test{a.name, func(t *testing.T, s *suite) { s.siege(t, a, user) }})
	}
	return tests
}

// battle is an environment with an attacker on m-0, and witnesses everywhere
// else.
type battle struct {
	s       *suite
	o       *outside
	env     sandbox.Environment
	capture *running // frames that come in on m-1
	heard   *running // its server
	watch   *watcher
	mark    int
	marker  string
	attack  string // its name
}

// ownKernel tells an attacker that its machine has a kernel of its own.
const ownKernel = "BJ_SANDBOXTEST_OWN_KERNEL"

// unpromised reports whether an attacker's line tells what docs/seal.md, under
// "What is not promised", says that root in a machine can do to that machine.
func (s *suite) unpromised(attack, line string) bool {
	if attack == "connections made up" && strings.HasPrefix(line, "heard udp ") && strings.Contains(line, fmt.Sprintf(":%d on [::]:%d:", openUDP, darkPort)) {
		return true
	}
	if s.opts.Virtual && strings.HasPrefix(line, "BREACH") {
		return true // its own kernel
	}
	return !s.root && strings.HasPrefix(line, "BREACH") && strings.Contains(line, "process 1")
}

func (s *suite) battle(t *testing.T) *battle {
	o := s.outside(t)
	o.silence("192.0.2.50")
	spec := s.spec(2)
	spec.Dial = o.dial
	for i := range spec.Machines {
		spec.Machines[i].Memory = 512 << 20
	}
	env := s.lease(t, spec)
	p := open()
	for _, addr := range []string{"192.0.2.10/32", "192.0.2.50/32"} {
		p.Allows = append(p.Allows, sandbox.Allow{Condition: 0, Protocol: "tcp", Prefix: prefix(addr), First: 443, Last: 443},
			sandbox.Allow{Condition: 1, Protocol: "udp", Prefix: prefix(addr), First: 53, Last: 53})
	}
	s.seal(t, env, p)
	b := &battle{s: s, o: o, env: env, marker: "escape-" + s.token}
	if s.opts.Outside != nil {
		if f := s.opts.Outside(t, env); f != nil {
			b.watch = s.watchOutside(t, env, f)
		}
	}
	b.heard = server(t, env.Machines()[1], openPort, openUDP, darkPort)
	b.capture = guest(t, env.Machines()[1], "capture", "eth0")
	b.capture.await("ready")
	b.mark = s.wire.mark(t)
	return b
}

// frames are what the witness on m-1 has seen.
func (b *battle) frames() []packet {
	var all []packet
	for _, line := range b.capture.lines() {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "frame" {
			continue
		}
		kind, _ := strconv.ParseUint(f[1], 16, 16)
		data, _ := hex.DecodeString(f[2])
		all = append(all, packet{kind: uint16(kind), data: data})
	}
	return all
}

// barrier waits until what was under way when it began has arrived: it sends
// something that may, and waits for the witness to see it.
func (b *battle) barrier(t *testing.T) {
	t.Helper()
	to, _ := machineAddrs(1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.env.Dial(ctx, "tcp", netip.AddrPortFrom(to, openPort))
	if err != nil {
		t.Fatalf("reaching the witness: %v", err)
	}
	defer c.Close()
	text := fmt.Sprintf("barrier-%d", time.Now().UnixNano())
	fmt.Fprintln(c, text)
	eventually(t, "the witness sees the barrier", func() bool {
		return strings.Contains(b.capture.output(), hex.EncodeToString([]byte(text)))
	})
}

// verdict fails for everything that arrived anywhere and was not allowed to.
func (b *battle) verdict(t *testing.T, attacker *running) {
	t.Helper()
	b.barrier(t)
	found := b.strange()
	if len(found) > 0 {
		t.Errorf("HOLE: frames arrived at the neighbour:\n\t%s", printable(found))
	}
	for _, line := range b.heard.lines() {
		if strings.Contains(line, fmt.Sprintf("on [::]:%d", darkPort)) || strings.Contains(line, "heard tcp") && strings.Contains(line, fmt.Sprintf("on [::]:%d", openUDP)) || strings.Contains(line, "heard udp") && strings.Contains(line, fmt.Sprintf("on [::]:%d", openPort)) {
			t.Errorf("HOLE: the neighbour's server in the dark: %s", line)
		}
	}
	var inside []string
	for _, line := range attacker.lines() {
		if b.s.unpromised(b.attack, line) {
			t.Logf("docs/seal.md does not promise against this: %s", line)
		} else if strings.HasPrefix(line, "heard ") || strings.HasPrefix(line, "BREACH") {
			inside = append(inside, line)
		}
	}
	if len(inside) > 0 {
		t.Errorf("HOLE: inside the machine:\n\t%s", printable(inside))
	}
	if b.watch != nil {
		if found := b.watch.strange(); len(found) > 0 {
			t.Errorf("HOLE: packets left past the seal:\n\t%s", printable(found))
		}
	}
	if found := b.s.wire.strange(t, b.mark); len(found) > 0 {
		t.Errorf("HOLE: packets on the host's network:\n\t%s", printable(found))
	}
	b.s.noHits(t)
	for _, d := range b.o.dialled() {
		if d != "tcp 192.0.2.10:443" && d != "udp 192.0.2.10:53" && d != "tcp 192.0.2.50:443" && d != "udp 192.0.2.50:53" {
			t.Errorf("HOLE: the relay dialled %s", d)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	select {
	case <-b.env.Lost():
		t.Error("the attacker has ended the environment")
		return
	default:
	}
	canaries, err := b.env.Canaries(ctx)
	if err != nil {
		t.Logf("canaries after the attack: %v", err)
	}
	for _, c := range canaries {
		if !c.Held && c.Machine != "m-0" {
			t.Errorf("HOLE: a canary fell: %s %s: %s", c.Machine, c.Probe, c.Detail)
		} else if !c.Held {
			// The attacker's own machine may be so broken that nothing is seen.
			t.Logf("a canary fell: %s %s: %s", c.Machine, c.Probe, c.Detail)
		}
	}
}

// strange returns the frames that arrived at the neighbour and had no right to.
func (b *battle) strange() []string {
	own4, own6 := machineAddrs(0)
	peer4, peer6 := machineAddrs(1)
	open := func(f fields) bool {
		return !f.opaque && (f.protocol == unix.IPPROTO_TCP && f.dport == openPort || f.protocol == unix.IPPROTO_UDP && f.dport == openUDP) && (f.dst == peer4 || f.dst == peer6)
	}
	type datagram struct {
		src, dst netip.Addr
		id       uint32
	}
	began := map[datagram]bool{} // fragmented ones to an open port
	var found []string
	for _, p := range b.frames() {
		f := p.parse()
		marked := strings.Contains(string(p.data), b.marker)
		// What comes from elsewhere than the attacker is the barrier.
		known := f.src == own4 || f.src == own6 || !marked && f.src != peer4 && f.src != peer6
		d := datagram{f.src, f.dst, f.id}
		switch {
		case !known:
		case open(f):
			began[d] = f.fragment
			continue
		case f.fragment && f.offset > 0 && began[d]:
			continue
		case quotesOpen(f, p.data, open):
			continue
		}
		found = append(found, p.String())
	}
	return found
}

// quotesOpen reports whether a packet is an error about one that came from the
// open port.
func quotesOpen(f fields, data []byte, open func(fields) bool) bool {
	kind, size := uint16(unix.ETH_P_IP), 14+20+8
	if f.version == 6 {
		kind, size = unix.ETH_P_IPV6, 14+40+8
	}
	if f.protocol != unix.IPPROTO_ICMP && f.protocol != unix.IPPROTO_ICMPV6 || len(data) < size+20 {
		return false
	}
	q := packet{kind: kind, data: append(make([]byte, 14), data[size:]...)}.parse()
	q.src, q.dst, q.sport, q.dport = q.dst, q.src, q.dport, q.sport
	return open(q)
}

// assault runs an attack on the network.
func (s *suite) assault(t *testing.T, name, user string) {
	if user != "" && !s.root {
		t.Skip("an ordinary user's machines have root alone")
	}
	b := s.battle(t)
	b.attack = name
	var env map[string]string
	if s.opts.Virtual {
		env = map[string]string{ownKernel: "1"}
	}
	r := start(t, b.env.Machines()[0], sandbox.Command{User: user, Env: env, Argv: []string{
		toolPath, guestCommand, "attack", name, b.marker,
		net.JoinHostPort("203.0.113.1", fmt.Sprint(b.o.dark4)), net.JoinHostPort("203.0.113.1", fmt.Sprint(b.o.darkU)),
		net.JoinHostPort("2001:db8:fe::1", fmt.Sprint(b.o.dark4)), net.JoinHostPort("127.0.0.1", fmt.Sprint(b.o.dark4)), net.JoinHostPort("127.0.0.1", fmt.Sprint(b.o.tcp.Port())),
	}})
	r.wait()
	if testing.Verbose() {
		t.Log(brief(r.output()))
	}
	if !strings.Contains(r.output(), "attack done") {
		t.Errorf("the attack did not come to its end: %s", r.output())
	}
	b.verdict(t, r)
}

// brief leaves of an attacker's report what worked.
func brief(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if len(lines) > 150 {
			lines = append(lines, "and more")
			break
		}
		lines = append(lines, strings.TrimRight(line, "\n"))
		if len(lines[len(lines)-1]) > 160 {
			lines[len(lines)-1] = lines[len(lines)-1][:160]
		}
	}
	return strings.Join(lines, "\n")
}

// testWitnesses: a witness that cannot see proves nothing.
func testWitnesses(t *testing.T, s *suite) {
	b := s.battle(t)
	a := b.env.Machines()[0]
	got := dials(t, a, 3000, fmt.Sprintf("udp,198.18.0.11:%d", openUDP), "tcp,192.0.2.10:443")
	for target, answer := range got {
		if !strings.HasPrefix(answer, "answered") {
			t.Errorf("%s: %s", target, answer)
		}
	}
	b.barrier(t)
	if !slices.ContainsFunc(b.frames(), func(p packet) bool { return p.parse().dport == openUDP }) {
		t.Error("the witness on the neighbour saw nothing")
	}
	if !strings.Contains(b.heard.output(), "heard udp") {
		t.Error("the neighbour's server heard nothing")
	}
	// The host's own witnesses, from the host.
	mark := s.wire.mark(t)
	c, err := net.Dial("udp", fmt.Sprintf("203.0.113.1:%d", b.o.darkU))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "a hit")
	c.Close()
	select {
	case <-s.hits:
	case <-time.After(patience):
		t.Error("the witness on the host heard nothing")
	}
	if len(s.wire.strange(t, mark)) == 0 {
		t.Error("the witness on the host's links saw nothing")
	}
}
